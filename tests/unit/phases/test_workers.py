"""Which worker gets which GPUs or cores."""

from __future__ import annotations

import os

import pytest

from dpo_dist.config import HfEngine, VllmEngine, VllmServer
from dpo_dist.errors import ConfigError
from dpo_dist.phases.workers import Place, places


def vllm(**settings: int) -> VllmEngine:
    return VllmEngine(type="vllm", **settings)


@pytest.fixture
def four_gpus(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-77")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("4",), ("5",), ("6",), ("GPU-77",)]),
        ({"workers": 2}, [("4",), ("5",)]),
        ({"tensor_parallel_size": 2}, [("4", "5"), ("6", "GPU-77")]),
        ({"tensor_parallel_size": 4}, [()]),  # one process, which sees what is visible
        ({"workers": 1}, [()]),
    ],
)
def test_a_worker_has_gpus_of_its_own(settings: dict[str, int], expected) -> None:
    assert [place.gpus for place in places(vllm(**settings))] == expected


@pytest.mark.usefixtures("four_gpus")
def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers with 2 GPUs each need 6, but 4 are visible"):
        places(vllm(workers=3, tensor_parallel_size=2))


def test_without_gpus_the_cores_are_shared_out(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert places(vllm()) == [Place()]
    found = places(HfEngine(type="hf", workers=2))
    assert [place.cores for place in found] == [{0, 2, 4}, {1, 3}]


@pytest.mark.usefixtures("four_gpus")
def test_servers_need_no_workers() -> None:
    assert places(VllmServer(type="vllm_server", urls=("http://a",))) == [Place()]
