"""Simulated scaling: one optimizer step of an 8 B model on 1 to 64 GPUs.

    python -m benchmarks.scaling [--gpu H100-80G] [--model-shape Llama-3.1-8B] [--json FILE]

Full fine-tuning under ZeRO-3 and LoRA under ZeRO-2, with a global batch of 128 pairs of
UltraFeedback's mean length and 8 GPUs per node, for two networks. Nothing is measured:
`estimates/scaling.py` simulates computation and communication layer by layer, at the assumed shares
of the GPU's peak (0.35) and of the links' bandwidth (0.8). Each line has its fastest setting that
fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import option_parser, publish
from dpo_dist.config import Full, Lora, Method
from dpo_dist.estimates.fit import Fit, Workload, ways_to_train
from dpo_dist.estimates.hardware import Cluster, find_cluster, preset_shape
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.scaling import Setting, training_step
from dpo_dist.estimates.sharding import Strategy
from dpo_dist.estimates.throughput import Pair
from dpo_dist.tools.plan.data import COMPLETION_TOKENS, PROMPT_TOKENS, ULTRAFEEDBACK_PAIRS

GLOBAL_BATCH = 128
MAX_LENGTH = 2048
PAIR = Pair(PROMPT_TOKENS, COMPLETION_TOKENS, COMPLETION_TOKENS)
GPUS_PER_NODE = 8
COUNTS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = (400, 3200)  # Gb/s per node: one network adapter per node, or one per GPU
METHODS: tuple[tuple[str, Method, Strategy], ...] = (
    ("full, ZeRO-3", Full(), "zero3"),
    ("LoRA, ZeRO-2", Lora(), "zero2"),
)
HEADER = (
    "|  | GPUs | Gb/s per node | micro-batch, checkpointing | s/step | pairs/s | share computing | "
    f"GB received per GPU and step | hours for 61,000 pairs |\n|{'---|' * 9}"
)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--gpu", default="H100-80G")
    parser.add_argument("--model-shape", default="Llama-3.1-8B")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    print(HEADER)
    shape = preset_shape(options.model_shape)
    for name, method, strategy in METHODS:
        for cluster in clusters(options.gpu):
            fit = best(shape, method, strategy, cluster)
            print(line(name, shape, method, cluster, fit))
            if fit.fits:
                label = f"{name}, {cluster.size} GPUs, {cluster.network * 8 / 1e9:g} Gb/s"
                figures[f"{label}: s/step"] = fit.step_seconds
                figures[f"{label}: efficiency"] = fit.efficiency
    print()
    publish(figures, options.json)


def clusters(gpu: str) -> Iterator[Cluster]:
    """From one GPU to eight nodes; the network matters only between nodes."""
    for count in COUNTS:
        inside, nodes = min(count, GPUS_PER_NODE), max(1, count // GPUS_PER_NODE)
        for network in NETWORKS if nodes > 1 else NETWORKS[:1]:
            yield find_cluster(f"{inside}x{gpu}", nodes=nodes, network_gbits=network)


def best(shape: ModelShape, method: Method, strategy: Strategy, cluster: Cluster) -> Fit:
    """The strategy's fastest setting that fits; a single GPU does not shard."""
    rest = MAX_LENGTH - PROMPT_TOKENS
    work = Workload(shape, method, PAIR, Pair(PROMPT_TOKENS, rest, rest), GLOBAL_BATCH)
    wanted = strategy if cluster.size > 1 else "single_gpu"
    return next(fit for fit in ways_to_train(work, cluster) if fit.strategy == wanted)


def line(name: str, shape: ModelShape, method: Method, cluster: Cluster, fit: Fit) -> str:
    network = f"{cluster.network * 8 / 1e9:g}" if cluster.nodes > 1 else "–"
    start = f"| {name} | {cluster.size} | {network} | "
    if not fit.fits:
        return f"{start}does not fit ({fit.total / 2**30:.0f} GiB) | – | – | – | – | – |"
    micro, kind, seconds = fit.micro_batch_size, fit.gradient_checkpointing, fit.step_seconds
    setting = Setting(fit.strategy, micro, GLOBAL_BATCH // (micro * cluster.size), kind)
    received = training_step(shape, method, PAIR, cluster, setting).received
    hours = ULTRAFEEDBACK_PAIRS / GLOBAL_BATCH * seconds / 3600
    return (
        f"{start}{micro}, {kind} | {seconds:.2f} | {GLOBAL_BATCH / seconds:.0f} | "
        f"{fit.efficiency:.2f} | {received / 1e9:.0f} | {hours:.2f} |"
    )


if __name__ == "__main__":
    main()
