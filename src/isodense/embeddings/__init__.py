"""Stage ``embeddings``: one unit vector per prompt, and reading them."""
