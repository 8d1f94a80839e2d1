"""Benchmarks against other implementations; the product depends on none of them."""
