"""`unloc evaluate`."""
