"""`unloc fit`."""
