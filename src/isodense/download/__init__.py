"""Stage ``download``: examples from one or more sources."""
