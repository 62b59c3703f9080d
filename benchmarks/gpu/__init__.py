"""What a machine with a GPU is asked: one file per part, and `python -m benchmarks.gpu` for all of them."""
