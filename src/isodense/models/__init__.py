"""Frozen model weights: one module per place that they come from."""
