"""Loading and running frozen models: what `embeddings`, `reward`, `train` and `evaluate` share."""
