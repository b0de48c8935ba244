"""Scaling on paper: one optimizer step of an 8 B model on 1 to 64 GPUs, simulated.

    python -m benchmarks.scaling [--gpu H100-80G] [--model-shape Llama-3.1-8B] [--json FILE]

All weights under ZeRO-3 and LoRA under ZeRO-2, at a global batch of 128 pairs of UltraFeedback's
mean length, 8 GPUs a node, for two networks. Nothing is measured: `estimates/scaling.py`
plays layer by layer what is computed and what is on the wires, at the assumed share of the peak
(0.35) and of the links' bandwidth (0.8). Each line is at its fastest setting that fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import option_parser, publish
from dpo_dist.config import Full, Lora, Method
from dpo_dist.estimates.fit import Fit, Workload, ways_to_train
from dpo_dist.estimates.hardware import Cluster, find_cluster, preset_shape
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import Strategy
from dpo_dist.estimates.throughput import Pair
from dpo_dist.tools.plan.data import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    ULTRAFEEDBACK_PAIRS,
)

GLOBAL_BATCH = 128
MAX_LENGTH = 2048
GPUS_A_NODE = 8
COUNTS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = (400, 3200)  # Gb/s a node: one adapter for the box, or one for each of its GPUs
WAYS: tuple[tuple[str, Method, Strategy], ...] = (
    ("full, ZeRO-3", Full(), "zero3"),
    ("LoRA, ZeRO-2", Lora(), "zero2"),
)
COLUMNS = (
    *("", "GPUs", "Gb/s a node", "micro-batch, checkpointing", "s/step", "pairs/s"),
    *("share computing", "GB to a GPU a step", "hours for 61,000 pairs"),
)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--gpu", default="H100-80G")
    parser.add_argument("--model-shape", default="Llama-3.1-8B")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    shape = preset_shape(options.model_shape)
    for name, method, strategy in WAYS:
        for cluster in clusters(options.gpu):
            fit = best(shape, method, strategy, cluster)
            print(line(name, cluster, fit))
            if fit.fits:
                label = f"{name}, {cluster.size} GPUs, {cluster.network * 8 / 1e9:g} Gb/s"
                figures[f"{label}: s/step"] = fit.step.seconds
                figures[f"{label}: efficiency"] = fit.step.efficiency
    print()
    publish(figures, options.json)


def clusters(gpu: str) -> Iterator[Cluster]:
    """From one GPU to eight nodes; the network only counts between nodes."""
    for count in COUNTS:
        inside, nodes = min(count, GPUS_A_NODE), max(1, count // GPUS_A_NODE)
        for network in NETWORKS if nodes > 1 else NETWORKS[:1]:
            yield find_cluster(f"{inside}x{gpu}", nodes=nodes, network_gbits=network)


def best(shape: ModelShape, method: Method, strategy: Strategy, cluster: Cluster) -> Fit:
    """The strategy's fastest setting that fits; on one GPU there is nothing to shard."""
    rest = MAX_LENGTH - PROMPT_TOKENS
    work = Workload(
        shape=shape,
        method=method,
        pair=Pair(PROMPT_TOKENS, COMPLETION_TOKENS, COMPLETION_TOKENS),
        longest=Pair(PROMPT_TOKENS, rest, rest),
        global_batch=GLOBAL_BATCH,
    )
    wanted = strategy if cluster.size > 1 else "single_gpu"
    ways = ways_to_train(work, cluster)
    return next(way for way in ways if way.setting.strategy == wanted)


def line(name: str, cluster: Cluster, fit: Fit) -> str:
    network = f"{cluster.network * 8 / 1e9:g}" if cluster.nodes > 1 else "–"
    setting = fit.setting
    start = f"| {name} | {cluster.size} | {network} | "
    if not fit.fits:
        return f"{start}does not fit ({fit.total / 2**30:.0f} GiB) | – | – | – | – | – |"
    seconds = fit.step.seconds
    hours = ULTRAFEEDBACK_PAIRS / GLOBAL_BATCH * seconds / 3600
    return (
        f"{start}{setting.micro_batch}, {setting.checkpointing} | {seconds:.2f} | "
        f"{GLOBAL_BATCH / seconds:.0f} | {fit.step.efficiency:.2f} | "
        f"{fit.step.received / 1e9:.0f} | {hours:.2f} |"
    )


if __name__ == "__main__":
    main()
