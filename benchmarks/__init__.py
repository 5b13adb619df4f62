"""Benchmarks: ``python -m benchmarks.update``.  Method and how to read the results: benchmarks/README.md."""
