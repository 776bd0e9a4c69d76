"""Benchmarks: ratios in one run. `make bench NAME=flow` runs `bench_flow.py`; every bench has a function `run`."""
