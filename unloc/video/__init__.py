"""Videos: facts of a stream, frames at wanted times, and what is made of them before a tower sees them."""
