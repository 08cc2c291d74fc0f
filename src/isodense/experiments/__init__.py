"""DVC experiments side by side: a table of all, and a comparison of ways to draw prompts."""
