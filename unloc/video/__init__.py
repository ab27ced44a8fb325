"""Videos: facts of a stream, frames at wanted times, and their preprocessing for a tower."""
