"""`unloc cache`."""
