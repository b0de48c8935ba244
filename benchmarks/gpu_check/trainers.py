"""Steps 6, 8 and 9: the trainers and vLLM, on a random model on the disk."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.profiles import count_waits
from benchmarks.gpu_check.report import Recorder, Skip
from benchmarks.gpu_check.scale import Scale, Sizes, add_lora, make_model, random_pairs, save_model
from benchmarks.gpu_check.sharded_block import Block as ShardedBlock

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
GIB = 2**30


def rows(scale: Scale, sizes: Sizes, count: int) -> list[dict[str, Any]]:
    """Random pairs in the columns of the trainer's parquet files."""
    from dpo_dist.training.reference import row_key

    pairs = random_pairs(scale, count, sizes=sizes)
    return [
        {
            "id": f"pair-{number}",
            "row": row_key(pair.prompt, pair.chosen, pair.rejected),
            "tokens": len(pair.prompt) + len(pair.chosen) + len(pair.rejected),
            "prompt_ids": pair.prompt,
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
        }
        for number, pair in enumerate(pairs)
    ]


def _block(scale: Scale, folder: Path, sizes: Sizes, trainer: str, batch: int, steps: int) -> Any:
    """The settings of a training in this process: LoRA, with log-probs of the reference computed
    before, and no checkpointing."""
    from benchmarks.train_block import Block
    from dpo_dist.data.rows import write_parquet

    model = folder / "model"
    if not model.exists():
        save_model(model, sizes)
        write_parquet(folder / "rows.parquet", rows(scale, sizes, batch * steps))
    return Block(
        trainer=trainer,
        method="lora",
        rows=str(folder / "rows.parquet"),
        out=str(folder / trainer),
        model=str(model),
        batch=batch,
        reference="cached",
        checkpointing="none",
    )


def waits_of_trainer(scale: Scale, folder: Path) -> Counter[str]:
    """The host synchronisations of the second step of our trainer."""
    from transformers import TrainerCallback

    from benchmarks import train_block

    found: Counter[str] = Counter()

    class SecondStep(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """Counts between the ends of the first and of the second step."""

        def __init__(self) -> None:
            self._counting: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self._counting = count_waits(scale)
                self._places = self._counting.__enter__()
            elif self._counting is not None:
                self._counting.__exit__(None, None, None)
                self._counting = None
                found.update(self._places)

    sizes = Sizes(**asdict(scale.saved_model) | {"num_hidden_layers": 2})
    block = _block(scale, folder, sizes, "ours", scale.micro_batches[0], 3)
    trainer = train_block.build(block)
    trainer.add_callback(SecondStep())
    trainer.train()
    return found


def against_trl(record: Recorder, scale: Scale, folder: Path) -> None:
    """Step 6."""
    from benchmarks import train_block

    batch, steps = (8, 5) if scale.on_gpu else (2, 3)
    speeds, losses = {}, {}
    for trainer in ("ours", "trl"):
        if scale.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        block = _block(scale, folder, scale.model, trainer, batch, steps)
        found = train_block.run(block)
        counted = found["step_seconds"][1:]  # the first step warms up
        speeds[trainer] = batch * len(counted) / sum(counted)
        losses[trainer] = found["losses"]
        record.figure(f"{trainer}: pairs/s", speeds[trainer])
        record.figure(f"{trainer}: s to build, with the reference", found["build_seconds"])
        if scale.on_gpu:
            record.figure(f"{trainer}: peak GiB", found["peak_bytes"] / GIB)
    record.check(
        "our pairs/s, of TRL's",
        speeds["ours"] / speeds["trl"],
        least=1.0 if scale.on_gpu else 0.2,
        why="packed rows compute each prompt once and no padding"
        if scale.on_gpu
        else "at toy size only the overhead is measured, on a busy machine",
    )
    record.check(
        "first losses, difference",
        abs(losses["ours"][0] - losses["trl"][0]),
        most=2e-2,
        why="both are ln 2, up to rounding to bfloat16",
    )


def sharded(record: Recorder, scale: Scale, folder: Path) -> None:
    """Step 8: for every strategy a training of three steps, and one that is stopped at its second
    step and resumes, as `dpo-dist train` runs them."""
    from dpo_dist.data.rows import write_parquet

    if not scale.on_gpu and scale.quick:
        raise Skip(
            "two CPU processes start for half a minute per training; without --quick, and in "
            "tests/integration/test_training.py, they are trained"
        )
    names = ["zero2", "zero3", "fsdp2"] if scale.on_gpu else ["cpu_zero2", "cpu_zero3"]
    if not scale.on_gpu:
        record.note("FSDP2 is not run: accelerate leaves it out on a CPU")
    save_model(folder / "model", scale.saved_model)
    write_parquet(folder / "rows.parquet", rows(scale, scale.saved_model, 3 * 4))
    write_parquet(folder / "validation.parquet", rows(scale, scale.saved_model, 4))
    gc.collect()
    if scale.on_gpu:
        torch.cuda.empty_cache()
    methods = ("lora", "full") if scale.on_gpu else ("lora",)
    jobs = [(name, method) for name in names for method in methods]
    limit = record.seconds_left() / 2 - 5 if scale.on_gpu else None
    with ThreadPoolExecutor(len(jobs) if scale.on_gpu else 1) as pool:
        ends = pool.map(
            lambda job: _train_and_resume(record, scale, folder, job[0], job[1], limit), jobs
        )
        errors = [error for error in ends if error]
    if errors:
        raise RuntimeError("; ".join(errors))


def _train_and_resume(
    record: Recorder, scale: Scale, folder: Path, config: str, method: str, limit: float | None
) -> str | None:
    """The trainings of a strategy; the error if one failed."""
    name = f"{config}, {method}"
    out = folder / f"{config}-{method}"
    out.mkdir()
    whole = ShardedBlock(
        model=str(folder / "model"),
        rows=str(folder),
        out=str(out / "whole"),
        method=method,
        accelerate_config=_one_process(config, out, scale),
        on_gpu=scale.on_gpu,
    )
    stopped = replace(whole, out=str(out / "stopped"), stop=True)
    checkpoint = out / "stopped" / "checkpoints" / "checkpoint-2"
    try:
        with ThreadPoolExecutor(2 if scale.on_gpu else 1) as pool:
            first, _ = pool.map(lambda block: _launch(block, limit), (whole, stopped))
        second = _launch(replace(stopped, stop=False, checkpoint=str(checkpoint)), limit)
    except (subprocess.SubprocessError, RuntimeError) as error:
        return f"{name}: {error}"
    if scale.on_gpu:
        record.figure(f"{name}: GiB right after initialize", first["ready_bytes"] / GIB)
        record.check(
            f"{name}: memory right after initialize / planned",
            first["ready_bytes"] / first["planned_bytes"],
            most=1.15,
            why="weights, optimizer and second model as planned; another copy of the weights in "
            "float32 would add a quarter, with LoRA more than the whole",
        )
        record.figure(f"{name}: peak GiB", first["peak_bytes"] / GIB)
    record.figure(f"{name}: s, with the start", first["seconds"])
    record.check(
        f"{name}: losses are finite and KL was measured",
        min(first["losses_finite"], first["kl_finite"]),
        least=1,
        why="three steps at a small rate diverge only if something is wrong",
    )
    record.check(
        f"{name}: third loss after resuming, difference",
        abs(second["losses"][-1] - first["losses"][-1]),
        most=1e-2 if scale.on_gpu else 1e-4,
        why="a resume repeats the step; on a GPU atomic additions may differ",
    )
    return None


def _one_process(config: str, folder: Path, scale: Scale) -> str:
    """A shipped accelerate configuration with one process; on a CPU with its two: for one process
    the trainer does not use DeepSpeed there."""
    import yaml

    values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))
    if scale.on_gpu:
        values["num_processes"] = 1
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def _launch(block: ShardedBlock, limit: float | None) -> dict[str, Any]:
    """Run a block under `accelerate launch`; its figures."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [block.accelerate_config, "--main_process_port", "0"]
    words += ["-m", "benchmarks.gpu_check.sharded_block", json.dumps(asdict(block))]
    environment = os.environ | ({} if block.on_gpu else {"DS_ACCELERATOR": "cpu"})
    log = Path(block.out).with_suffix(".log")
    with log.open("w") as file:
        done = subprocess.run(words, stdout=file, stderr=file, env=environment, timeout=limit)
    result = Path(block.out) / "figures.json"
    if done.returncode or not result.exists():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        errors = [line for line in lines if "Error" in line and "ChildFailed" not in line]
        raise RuntimeError(
            f"exit code {done.returncode}: {' | '.join((errors or lines)[-3:])[:500]}"
        )
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def sampling(record: Recorder, scale: Scale, folder: Path) -> None:
    """Step 9: many requests with an adapter, with every partial output and with final ones only."""
    if not scale.on_gpu and scale.quick:
        raise Skip("the CPU engine starts for half a minute; run it without --quick")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm  # noqa: F401

    # vLLM's CPU kernels need head dimensions of at least 32.
    sizes = scale.saved_model if scale.on_gpu else Sizes(256, 512, 2, 4, 2, 512)
    model = save_model(folder / "model", sizes)
    adapter = _save_adapter(folder, sizes)
    requests, length = (256, 256) if scale.on_gpu else (32, 16)
    settings = {
        "model": str(model), "adapter": str(adapter), "requests": requests, "length": length,
        "prompts": [pair.prompt for pair in random_pairs(scale, requests, sizes=sizes)],
        "on_gpu": scale.on_gpu, "out": str(folder / "figures.json"),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    started = time.monotonic()
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check.sampling_block",
        str(folder / "settings.json"),
    ]
    done = subprocess.run(words, stdout=sys.stdout, stderr=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"the engine ended with exit code {done.returncode}, see its output")
    found = json.loads((folder / "figures.json").read_text())
    record.figure("s with the engine's start", time.monotonic() - started)
    for kind, values in found["kinds"].items():
        record.figure(f"{kind}: tokens/s", values["tokens"] / values["seconds"])
        record.check(
            f"{kind}: tokens",
            values["tokens"],
            least=requests * length,
            why="every request ignores the end token, so it has exactly its length",
        )
    record.check(
        "share of answers that the adapter changes",
        found["changed"],
        least=0.5,
        why="its weights are large, so greedy answers without it must differ",
    )
    record.figure(
        "final outputs only: times faster",
        found["kinds"]["every output"]["seconds"] / found["kinds"]["final outputs only"]["seconds"],
    )


def _save_adapter(folder: Path, sizes: Sizes) -> Path:
    model = add_lora(make_model(sizes, torch.bfloat16, "cpu"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"
