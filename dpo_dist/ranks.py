"""Which of the processes of a distributed run this one is, read from the launcher's variables."""

import os

# What `accelerate launch`, torchrun and Kubeflow leave in the environment. A vLLM engine that
# inherits them believes it is a rank of that job and hangs, so generation strips them.
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "PET_", "ACCELERATE_", "VLLM_DP_", "MASTER_")
LAUNCHER_NAMES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"})


def rank() -> int:
    """This process's global rank; 0 outside a distributed run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together; 1 outside a distributed run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def strip_launcher_variables() -> None:
    """Forget the surrounding distributed launch, in this process and its children."""
    for name in list(os.environ):
        if name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]
