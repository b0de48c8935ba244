"""The largest models that accelerate_configs/ and docs/scaling.md name are those of the plan."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import replace

import pytest

from dpo_dist.config import Full, Lora, Method
from dpo_dist.estimates.fit import Workload, measure
from dpo_dist.estimates.hardware import Cluster, find_cluster, preset_shape
from dpo_dist.estimates.scaling import Setting
from dpo_dist.estimates.sharding import Strategy
from dpo_dist.estimates.throughput import Pair
from tests.conftest import ROOT

LAYERS = preset_shape("Llama-3.1-8B")
ONE, BOX = find_cluster("H100-80G"), find_cluster("8xH100-80G")
METHODS: dict[str, Method] = {
    "all weights": Full(),
    "LoRA": Lora(),
    "QLoRA": Lora(quantization="nf4"),
}


def largest(strategy: Strategy, method: Method, cluster: Cluster, *, kl: bool = True) -> float:
    """Billions of weights of the deepest model of Llama-3.1-8B's layers that fits: one pair of
    2,048 tokens at a time, full checkpointing, the KL's second model beside all weights."""
    pair = Pair(148, 1900, 1900)

    def too_large(layers: int) -> bool:
        shape = replace(LAYERS, layers=layers)
        second = shape.parameters if kl and isinstance(method, Full) else 0
        work = Workload(shape, method, pair, pair, 128, second)
        return not measure(work, cluster, Setting(strategy, 1, 128 // cluster.size, "full")).fits

    layers = bisect_left(range(1, 2000), True, key=too_large)
    return replace(LAYERS, layers=layers).parameters / 1e9


@pytest.mark.parametrize(
    ("name", "strategy", "cluster", "stated"),
    [
        ("single_gpu", "single_gpu", ONE, tuple(METHODS)),
        ("ddp", "ddp", BOX, tuple(METHODS)),
        ("zero1", "zero1", BOX, ("all weights",)),
        ("zero2", "zero2", BOX, ("all weights",)),
        ("zero3", "zero3", BOX, tuple(METHODS)),
        ("fsdp2", "fsdp2", BOX, tuple(METHODS)),
        ("multi_node_zero3", "zero3", replace(BOX, nodes=2), ("all weights",)),
    ],
)
def test_the_largest_model_is_the_plan_s(name, strategy, cluster, stated) -> None:
    comment = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    text = re.sub(r"\s+#?\s*", " ", comment)
    document = (ROOT / "docs" / "scaling.md").read_text()
    row = next(line for line in document.splitlines() if line.startswith(f"| `{name}` | "))
    for method in stated:
        limit = largest(strategy, METHODS[method], cluster)
        (number,) = re.findall(rf"(?i)\b{method} up to about ([\d.]+) B", text)
        assert float(number) == pytest.approx(limit, rel=0.03)
        cell = row.split(" | ")[2 + list(METHODS).index(method)]
        assert re.match(r"[\d.]+", cell.strip(" |"))[0] == number


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_without_the_kl_s_second_model_more_fits(name) -> None:
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    (number,) = re.findall(r"\(([\d.]+) B with `kl: \{prompts: 0\}`\)", text)
    assert float(number) == pytest.approx(largest(name, Full(), BOX, kl=False), rel=0.03)
