"""The comparison of the arms and its statistics."""
