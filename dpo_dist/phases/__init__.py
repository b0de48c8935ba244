"""The phases of a run, one module each. They exchange data only on disk; see registry.py."""
