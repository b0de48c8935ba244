"""What a training needs from the machine: model sizes, planned memory and sharding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from dpo_dist.config import Checkpointing, Lora, Model, Optimization, Train, is_quantized
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.estimates.fit import MOST_NODES, described, other_methods
from dpo_dist.estimates.hardware import find_device, preset_for, preset_shape
from dpo_dist.estimates.host import HostMemory, host_memory
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy, loading_bytes, planned_peak
from dpo_dist.system.machine import gpus, has_cuda
from dpo_dist.training.launch_shape import LaunchShape


def model_shape(model: str, trust_remote_code: bool) -> ModelShape:
    """The sizes of a model, from its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ModelShape.of(config.get_text_config())


def check_saved_modules(phase: str, section: Optimization, model: Model) -> None:
    """Raises `ConfigError` if an adapter would have its own copy of a tied embedding or head."""
    method = section.method
    names = method.saves_tied if isinstance(method, Lora) else ()
    if names and model_shape(model.base, model.trust_remote_code).tied:
        raise ConfigError(
            f"{phase}.method.modules_to_save: {', '.join(names)}: {model.base} ties its head to "
            "its embedding, and a merged model would lose the copy. Remove it, or use "
            "method: {type: full}"
        )


def planned_bytes(
    shape: ModelShape, settings: Optimization, lengths: Sequence[int], *, validates: bool = False
) -> dict[Checkpointing, int]:
    """A process's planned peak memory on this machine in bytes, for the longest micro-batch, by
    kind of checkpointing. `lengths` are the rows' numbers of tokens; each token may have to be
    predicted. `validates`: there are validation rows, on which the KL is measured."""
    longest = sum(sorted(lengths)[-settings.micro_batch_size :])
    launch = LaunchShape.of(settings)
    kinds: tuple[Checkpointing, ...] = get_args(Checkpointing)
    return {
        kind: _process_bytes(
            shape, settings, strategy(launch), launch.processes, longest, kind, validates
        )
        for kind in kinds
    }


def _process_bytes(
    shape: ModelShape,
    settings: Optimization,
    way: Strategy,
    processes: int,
    tokens: int,
    kind: Checkpointing,
    validates: bool,
) -> int:
    """A process's planned peak on this machine, for `tokens` in a micro-batch, with any `way`."""
    on_cpu = not has_cuda()
    peak = planned_peak(
        shape,
        settings.method,
        way,
        processes,
        tokens=tokens,
        scored=tokens,
        checkpointing=kind,
        reference=_second_model(shape, settings, validates),
        reference_size=_second_size(settings),
        # `uses_bf16` in training/models.py
        bf16=settings.bf16 and not (on_cpu and (processes > 1 or ZERO_STAGE[way] > 0)),
        on_cpu=on_cpu,
    )
    return max(sum(peak.values()), loading_bytes(shape, settings.method, way, processes))


def _second_model(shape: ModelShape, settings: Optimization, validates: bool) -> int:
    second = isinstance(settings, Train) and settings.has_second_model(validates=validates)
    return shape.parameters if second else 0


def _second_size(settings: Optimization) -> Literal[2, 4]:
    return 4 if isinstance(settings, Train) and settings.reference == "live" else 2


def planned_host(
    shape: ModelShape, settings: Optimization, *, validates: bool = False
) -> HostMemory:
    """The CPU memory that a training on GPUs needs of a node."""
    launch = LaunchShape.of(settings)
    return _host(shape, settings, strategy(launch), launch.machines, validates)


def _host(
    shape: ModelShape, settings: Optimization, way: Strategy, machines: int, validates: bool
) -> HostMemory:
    per_machine = LaunchShape.of(settings).per_machine
    return host_memory(
        shape,
        settings.method,
        way,
        machines * per_machine,
        per_machine,
        reference=_second_model(shape, settings, validates),
        reference_size=_second_size(settings),
        merges=isinstance(settings, Train) and settings.merge,
    )


def ways_that_fit(
    shape: ModelShape, settings: Optimization, tokens: int, *, gpu: float, host: float
) -> list[str]:
    """What would hold a training on nodes with the free bytes `gpu` (of each GPU) and `host`: more
    sharding, another method, more nodes. `tokens` are those of a micro-batch; validation rows are
    taken for granted, and checkpointing is full."""
    launch = LaunchShape.of(settings)

    def fits(changed: Optimization, way: Strategy, machines: int = launch.machines) -> bool:
        processes = machines * launch.per_machine
        need = _process_bytes(shape, changed, way, processes, tokens, "full", True)
        return need <= gpu and _host(shape, changed, way, machines, True).peak <= host

    ways: tuple[Strategy, ...] = ("single_gpu",)
    if launch.processes > 1:
        ways = ("zero2", "zero3")
    if not is_quantized(settings.method):
        ways = (*ways, "zero3_offload")
    found = [f"train.accelerate_config: {way}" for way in ways if fits(settings, way)][:1]
    if isinstance(settings, Train) and settings.merge:  # 4 bytes per weight of CPU memory
        unmerged = settings.model_copy(update={"merge": False})
        if fits(unmerged, strategy(launch)):
            found.append("train.merge: false (merge on another machine)")
    for method in other_methods(settings.method):
        changed = settings.model_copy(update={"method": method})
        way = next((way for way in ways if way != "zero3_offload" and fits(changed, way)), None)
        if way is not None:
            found.append(f"{described(method)} with train.accelerate_config: {way}")
    share = settings.micro_batch_size * launch.per_machine
    machines = [
        n
        for n in range(launch.machines + 1, MOST_NODES + 1)
        if settings.global_batch_size % (n * share) == 0
    ]
    if (more := next((n for n in machines if fits(settings, "zero3", n)), None)) is not None:
        found.append(f"train.accelerate_config: multi_node_zero3 on {more} nodes")
    return found


def gpu_flops() -> float | None:
    """bf16 FLOP/s of a GPU of this machine by its data sheet; None without a GPU, and for one that
    is unknown."""
    found = next(iter(gpus()), None)
    known = None if found is None else find_device(found.name)
    return None if known is None else known.flops


def strategy(launch: LaunchShape, processes: int | None = None) -> Strategy:
    """The sharding strategy of a training, for its own or the given number of processes."""
    processes = processes or launch.processes
    if launch.fsdp:
        return "fsdp2"
    if launch.zero_stage == 3 and launch.offloads:
        return "zero3_offload"
    if launch.zero_stage == 0:
        return "single_gpu" if processes == 1 else "ddp"
    return next(name for name, stage in ZERO_STAGE.items() if stage == launch.zero_stage)


def find_shape(model: Model, preset: str | None = None) -> tuple[ModelShape, str]:
    """The model's sizes and their source: its configuration or the table of common models. Nothing
    is downloaded. Raises `ModelError` if neither has the model."""
    base = model.base
    if preset is not None:
        return preset_shape(preset), f"--model-shape {preset}"
    if (Path(base) / "config.json").exists():
        return model_shape(base, model.trust_remote_code), f"{base}/config.json"
    if (named := preset_for(base)) is not None:
        return preset_shape(named), f"estimates/models.toml: {named}"
    cached = ","
    if is_hub_id(base):
        from huggingface_hub import try_to_load_from_cache

        cached = " nor in the Hub's cache,"
        found = try_to_load_from_cache(base, "config.json")
        if isinstance(found, str):
            shape = model_shape(str(Path(found).parent), model.trust_remote_code)
            return shape, f"{base} in the Hub's cache"
    raise ModelError(
        f"{base}: its configuration is not on this machine{cached} and the model is not in the "
        "table of common models; name its shape with --model-shape (Llama-3.1-8B, Mistral-7B, ...)"
    )
