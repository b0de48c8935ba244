"""Runs: their phases, directories, weights, manifests and memory needs."""
