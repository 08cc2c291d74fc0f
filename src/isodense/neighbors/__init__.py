"""Stage ``neighbors``: the nearest training prompts of every prompt."""
