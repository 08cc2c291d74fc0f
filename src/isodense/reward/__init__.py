"""Stage ``reward``: what GRPO optimises, one module per kind."""
