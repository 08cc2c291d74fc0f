"""Stage ``map``: two coordinates for every prompt, for the report."""
