"""The commands that measure the figures in the documents: `python -m benchmarks.NAME`."""
