"""Benchmarks of kernels, policies, cost models and controllers, with committed results."""
