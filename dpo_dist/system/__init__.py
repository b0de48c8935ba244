"""The machine and its processes: GPUs, memory, ranks, child processes and the console."""
