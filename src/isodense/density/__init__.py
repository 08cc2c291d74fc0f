"""Stage ``density``: density of every prompt, and weights that fall with it."""
