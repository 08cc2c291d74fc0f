"""Stage ``evaluate``: base against trained policy."""
