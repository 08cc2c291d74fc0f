"""Sources of preference pairs: a module per data set, with a params class and ``load``."""
