"""Benchmarks: ``python -m benchmarks``.  Method and how to read the results: benchmarks/README.md."""
