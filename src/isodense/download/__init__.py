"""Stage ``download``: preference pairs from one or more sources."""
