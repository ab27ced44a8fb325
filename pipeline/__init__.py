"""All that runs on Ray: thin shells over unloc.inference.encode."""
