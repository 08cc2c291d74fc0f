"""Sources of preference pairs: one module per data set, each with a params class and ``load``."""
