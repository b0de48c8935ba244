"""One module a phase; each reads like a paragraph and meets the others only on disk."""
