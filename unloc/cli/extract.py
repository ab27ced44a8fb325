"""`unloc extract`."""
