"""The commands behind every figure in the documents: `python -m benchmarks.NAME`."""
