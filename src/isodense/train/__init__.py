"""Stage ``train``: GRPO through TRL on prompts drawn by weight."""
