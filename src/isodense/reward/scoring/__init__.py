"""Scoring answers with a finished reward: what `train` and `evaluate` need of this package."""
