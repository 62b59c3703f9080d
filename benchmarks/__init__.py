"""What charlm is measured by: `charlm bench` races training, `bench_<op>.py` time one op each; `python -m benchmarks`
runs them all and writes `results/`.
"""
