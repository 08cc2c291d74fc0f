"""The kinds of reward: one module per kind, and what they share."""
