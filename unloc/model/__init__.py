"""Networks: fusion, pyramid, heads, and the towers over open_clip."""
