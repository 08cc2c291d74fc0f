"""Stage ``prompts``: unique prompts, and reading them."""
