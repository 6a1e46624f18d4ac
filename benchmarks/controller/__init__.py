"""Benchmarks run controllers on a simulated plant and on recorded decision logs."""
