"""The peak memory of a GPU, and the peak of its arithmetic."""

from __future__ import annotations

import pytest
import torch

from dpo_dist.estimates.hardware import find_device
from dpo_dist.system.machine import gpus
from dpo_dist.training.usage import peak_memory

pytestmark = pytest.mark.gpu


def test_the_peak_is_what_was_allocated_at_once() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory().device_bytes
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del held
    peak = peak_memory()
    assert before is not None and peak.device_bytes is not None
    assert before + 2**28 <= peak.device_bytes == peak.bytes


def test_the_driver_and_cuda_report_the_same_name() -> None:
    name = torch.cuda.get_device_name(0)
    assert name in {gpu.name for gpu in gpus()}
    known = find_device(name)
    if known is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        assert total == pytest.approx(known.memory, rel=0.05)
