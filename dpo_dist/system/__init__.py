"""The machine and its processes: GPUs, memory, ranks, child processes, the console."""
