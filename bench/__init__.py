"""Benchmarks: ``python -m bench``. Both sides of a ratio are measured in alternating rounds of one run."""
