"""Measurements against a baseline in the same run; `python -m benchmarks` prints the ratios."""
