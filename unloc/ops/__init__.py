"""Pure functions on tensors: no parameters, no files. Times are level-0 steps here (suffix `_steps`)."""
