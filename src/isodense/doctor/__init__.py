"""Checks of whether a checkout is fit to run."""
