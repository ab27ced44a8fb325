"""The cache: tokens on disk, read, written, checked, here or in a bucket."""
