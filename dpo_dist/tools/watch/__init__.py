"""Watching a run from anywhere that sees its directory: files are read, nothing is written."""
