"""Prompts in, weights out, in one call: the stages that weights need, without a project or DVC."""
