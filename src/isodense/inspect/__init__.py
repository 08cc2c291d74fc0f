"""Questions about prompts: lookup, explanations, an overview, growth."""
