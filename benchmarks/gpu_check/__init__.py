"""What only a GPU can prove, in ten steps and less than eight minutes.

    python -m benchmarks.gpu_check [--quick] [--only 2,3] [--json FILE]

Every step runs in its own process, with a limit of time: one that fails, crashes or hangs does not
stop the others. A step is skipped, with the reason, if a package that it needs is not installed. On
a CPU the same code runs at toy size. docs/gpu-check.md explains the figures and the verdicts.
"""
