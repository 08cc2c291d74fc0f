"""Drawing prompts by their weights."""
