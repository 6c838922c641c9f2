"""Parameters, FLOPs and memory of a model (`latte info`), computed without allocating it."""
