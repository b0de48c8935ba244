"""The speed and the memory of a training, for its metrics and its outcome."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch

from dpo_dist.system import ranks
from dpo_dist.training import Metrics
from dpo_dist.training.job import TrainingJob


@dataclass(frozen=True)
class PeakMemory:
    """The peak memory in bytes of the process that needed most: its resident set, and what PyTorch
    allocated on its GPU (None without a GPU)."""

    rss_bytes: int
    device_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """Of the device that trains."""
        return self.rss_bytes if self.device_bytes is None else self.device_bytes


def peak_memory(device: torch.device | None = None) -> PeakMemory:
    """The peak of all ranks so far. If there are several, each must call this with its device."""
    on_gpu = torch.cuda.is_available()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    allocated = torch.cuda.max_memory_allocated() if on_gpu else 0
    if torch.distributed.is_initialized():
        peaks = torch.tensor([rss, allocated], dtype=torch.int64, device=device)
        torch.distributed.all_reduce(peaks, torch.distributed.ReduceOp.MAX)
        rss, allocated = peaks.tolist()
    return PeakMemory(rss, allocated if on_gpu else None)


@dataclass
class SpeedMeter:
    """Tokens per second and the model FLOPs utilization (MFU) of the steps between two logs,
    without the time for validating and saving."""

    job: TrainingJob | None = None
    _seconds: float = 0.0
    _moment: float = field(default_factory=time.monotonic)
    _tokens: float | None = None  # at the last log

    def step(self, *, paused: bool = False) -> None:
        """A step ended. If training is `paused` after it, its work must be done on the GPU too."""
        if paused and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        self._seconds += now - self._moment
        self._moment = now

    def resume(self) -> None:
        """Training goes on: the time since the last step was spent on something else."""
        self._moment = time.monotonic()

    def log(self, tokens: float) -> Metrics:
        """The speed since the last log, from the number of all `tokens` trained on so far. Empty at
        the first log, whose steps are slower: kernels are chosen and memory is allocated."""
        self.step()
        seconds, self._seconds = self._seconds, 0.0
        before, self._tokens = self._tokens, tokens
        if before is None:
            return {}
        rate = (tokens - before) / seconds
        speed = {"tokens_per_second": rate}
        if self.job is not None and self.job.gpu_flops is not None:
            available = self.job.gpu_flops * ranks.world_size()
            speed["mfu"] = rate * self.job.flops_per_token / available
        return speed
