"""One self-contained HTML page of a run, of predictions or of a video."""
