"""Annotations: the manifest schema, official formats, checks and repairs, class splits."""
