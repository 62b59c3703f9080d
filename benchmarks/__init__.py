"""What charlm is measured by: `charlm bench` races training, `with_jax` lets JAX take part, `bench_*.py` time ops and
sampling; `python -m benchmarks` runs them all and writes `results/`. `python -m benchmarks ops` measures the ops alone,
and `python -m benchmarks models` training steps of other models that use them.
"""
