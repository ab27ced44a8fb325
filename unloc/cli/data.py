"""`unloc data`."""
