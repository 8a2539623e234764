"""Benchmarks: ``python -m bench <name>``; results with versions go to ``bench/results``."""
