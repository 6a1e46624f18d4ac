"""Replicas share step costs: each ships statistics to a store, a job fits them."""
