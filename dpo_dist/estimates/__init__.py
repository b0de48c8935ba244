"""Memory and time of a training, calculated from sizes alone."""
