"""What charlm is measured by: `charlm bench` races training, `with_jax` lets JAX take part, `bench_<op>.py` time one op
each; `python -m benchmarks` runs them all and writes `results/`.
"""
