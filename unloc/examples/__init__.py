"""Examples: what a model is given, from a manifest and a cache."""
