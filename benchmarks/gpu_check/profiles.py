"""The kernels of a step, the time between them, and the places where the host waits."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_check.scale import Scale

# Operators whose result the host needs, or whose result's size depends on values.
_WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2",
    "unique_consecutive", "unique_dim",
}  # fmt: skip


def kernels_and_idle(run: Callable[[], object], scale: Scale) -> tuple[int, float | None]:
    """(GPU kernels of a run, the share of the time between its first and last in which none runs);
    on a CPU the number of operators that the host calls, and None."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if scale.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run()
    scale.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        scale.synchronize()
    if not scale.on_gpu:
        called = [e for e in profile.events() if e.name.startswith(("aten::", "dpo_dist::"))]
        return sum(event.cpu_parent is None or _is_outer(event) for event in called), None
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch._C._autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    )
    return len(spans), 1 - _covered(spans) / (max(end for _, end in spans) - spans[0][0])


def _is_outer(event: Any) -> bool:
    """Whether no other operator called this one."""
    return not event.cpu_parent.name.startswith(("aten::", "dpo_dist::"))


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals that are sorted by their start."""
    total, reached = 0.0, spans[0][0]
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@contextmanager
def count_waits(scale: Scale) -> Iterator[Counter[str]]:
    """Count the host synchronisations of a block, by place. On a CPU these are the operators that
    would wait for a GPU."""
    places: Counter[str] = Counter()
    if not scale.on_gpu:
        with _CountOperators(places):
            yield places
        return

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            places[_place()] += 1

    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class _CountOperators(TorchDispatchMode):
    def __init__(self, places: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if (name in _WAITING or by_mask) and not _on_host(place := _place()):
            self._places[f"{name} {place}"] += 1
        return operator(*args, **(kwargs or {}))


def _on_host(place: str) -> bool:
    """Whether a line works with tensors of the host also where there is a GPU: packing, and the
    mask of a packed row, which holds its window."""
    return "packing.py" in place or place.endswith((" packed_attention", " _mask"))


def _place() -> str:
    """The innermost line that is neither torch's nor of this machinery: file:line function."""
    library = str(Path(torch.__file__).parent)
    machinery = (library, __file__, warnings.__file__, contextlib.__file__)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(machinery):
            path = Path(frame.filename)
            return f"{path.parent.name}/{path.name}:{frame.lineno} {frame.name}"
    return "torch"
