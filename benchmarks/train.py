"""Compares our trainer with TRL's `DPOTrainer`.

    python -m benchmarks.train --rows FILE [--quick] [--json FILE]

Both trainers train the same model on real preference rows (`--rows`, UltraFeedback-binarized's
columns), in the same order and batches. Every block is a separate process. The two trainers
alternate in rounds, each round with other rows; a figure is the median over rounds. The first step
of a block is not counted. The computation of a precomputed reference is not counted either.

    lfl    like for like, the default recipe with both trainers: live reference and activation
           checkpointing, `selective` in ours; with `, full` ours recomputes every layer like TRL's
    best   each trainer at its best: precomputed reference, no checkpointing, its best batch
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import MODEL, option_parser, publish
from benchmarks.flops import useful_flops
from benchmarks.train_block import Block
from dpo_dist.config import DataPreferences
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.data.preferences import load_preferences
from dpo_dist.data.rows import write_parquet
from dpo_dist.training.reference import row_key
from dpo_dist.training.sampler import GlobalBatchSampler

MAX_LENGTH = 1024
PAIRS_PER_BLOCK = 8
COMPARISONS = ("lfl batch 2", "lfl batch 4", "lfl batch 2, full", "best")
# With the settings of our training processes, which torch reads when it is imported.
START = """
import runpy
from dpo_dist.training.process import prepare
prepare()
runpy.run_module("benchmarks.train_block", run_name="__main__")
"""
TRL_BEST_BATCH = 1  # padding costs TRL more than small batches, see `Bench.batches`
OURS_BEST_BATCH = 4


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=4, help="blocks of 8 pairs per trainer")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--comparisons", nargs="+", default=COMPARISONS, choices=COMPARISONS)
    parser.add_argument("--no-sweeps", action="store_true", help="skip other batches and prompts")
    parser.add_argument("--profile", action="store_true", help="only profile a step of our trainer")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    rows = tokenized(options.rows, options.model)
    random.Random(0).shuffle(rows)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), str(options.model), rounds)
        if options.profile:
            ours = sides(options.methods[0], "best")[0]
            bench.block(rows[:PAIRS_PER_BLOCK], trainer="ours", profile=True, **ours)
            return
        for method in options.methods:
            for name in ("best",) if options.quick else options.comparisons:
                figures |= bench.compare(f"{method} {name}", rows, *sides(method, name))
        if not options.quick and not options.no_sweeps:
            figures |= bench.batches(rows)
            figures |= bench.prompt_shares(rows)
    publish(figures | headline(figures), options.json)


def sides(method: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a comparison: (ours, TRL's)."""
    if name == "best":
        best = {"method": method, "reference": "cached", "checkpointing": "none"}
        return best | {"batch": OURS_BEST_BATCH}, best | {"batch": TRL_BEST_BATCH}
    recipe, _, checkpointing = name.partition(", ")
    batch = int(recipe.rsplit(" ", 1)[1])
    theirs = {"method": method, "reference": "live", "checkpointing": "full", "batch": batch}
    return theirs | {"checkpointing": checkpointing or "selective"}, theirs


def headline(figures: dict[str, float]) -> dict[str, float]:
    """The figures that have targets: LoRA, with the recipe's batch of 2."""
    names = {
        "pairs_per_second_ratio_like_for_like": "lora lfl batch 2: ratio",
        "pairs_per_second_ratio_best": "lora best: ratio",
        "peak_memory_ratio": "lora lfl batch 2: peak memory ratio",
        "gemm_fraction": "lora best: ours gemm fraction",
        "max_loss_difference": "lora lfl batch 2: max loss difference",
    }
    return {name: figures[key] for name, key in names.items() if key in figures}


class Bench:
    """Runs blocks in separate processes and compares them."""

    def __init__(self, folder: Path, model: str, rounds: int) -> None:
        self._folder = folder
        self._model = model
        self._rounds = rounds
        self._runs = 0

    def compare(
        self, name: str, rows: list[dict[str, Any]], ours: dict[str, Any], theirs: dict[str, Any]
    ) -> dict[str, float]:
        """Alternate the two trainers in rounds with different rows."""
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        losses: dict[str, list[list[float]]] = defaultdict(list)
        for number in range(self._rounds):
            block_rows = rows[number * PAIRS_PER_BLOCK : (number + 1) * PAIRS_PER_BLOCK]
            order = [("trl", theirs), ("ours", ours)]
            for trainer, settings in order if number % 2 == 0 else reversed(order):
                result = self.block(block_rows, trainer=trainer, **settings)
                found[trainer].append(result["figures"])
                losses[trainer].append(result["losses"])
                print(f"{name}, round {number + 1}, {trainer}: {result['figures']}", flush=True)
        figures = {
            f"{name}: {trainer} {key}": statistics.median(round_[key] for round_ in results)
            for trainer, results in found.items()
            for key in results[0]
        }
        pairs = list(zip(found["ours"], found["trl"], strict=True))
        figures[f"{name}: ratio"] = statistics.median(
            a["pairs per second"] / b["pairs per second"] for a, b in pairs
        )
        figures[f"{name}: peak memory ratio"] = statistics.median(
            a["peak GiB"] / b["peak GiB"] for a, b in pairs
        )
        if ours["batch"] == theirs["batch"]:
            figures[f"{name}: max loss difference"] = max(
                abs(a - b)
                for mine, other in zip(losses["ours"], losses["trl"], strict=True)
                for a, b in zip(mine, other, strict=True)
            )
        return figures

    def batches(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Different batch sizes: precomputed reference, no checkpointing, LoRA."""
        figures = {}
        for batch in (1, 2, 4, 8):
            for trainer in ("ours", "trl") if batch < 8 else ("ours",):  # TRL would need 30 GiB
                settings = sides("lora", "best")[0] | {"batch": batch}
                result = self.block(rows[:PAIRS_PER_BLOCK], trainer=trainer, **settings)
                for key in ("pairs per second", "peak GiB"):
                    figures[f"batch {batch}: {trainer} {key}"] = result["figures"][key]
        return figures

    def prompt_shares(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Different shares of the prompt: the same texts, cut to about 600 tokens per row."""
        figures = {}
        for ratio in (0.25, 1.0, 4.0):
            cut = with_prompt_share(rows, ratio)[:PAIRS_PER_BLOCK]
            settings = sides("lora", "best")[0] | {"batch": 2}
            speeds = {
                trainer: self.block(cut, trainer=trainer, **settings)["figures"]
                for trainer in ("ours", "trl")
            }
            ratios = speeds["ours"]["pairs per second"] / speeds["trl"]["pairs per second"]
            figures[f"prompt:completion {ratio:g}: ratio"] = ratios
        return figures

    def block(self, rows: list[dict[str, Any]], *, batch: int, **settings: Any) -> dict[str, Any]:
        """Train on the rows, after a first batch with the longest rows, which is not counted."""
        self._runs += 1
        out = self._folder / str(self._runs)
        longest = sorted(rows, key=lambda row: -row["tokens"])[:batch]
        path = write_parquet(out / "rows.parquet", ordered([*longest, *rows], batch))
        block = Block(rows=str(path), out=str(out), model=self._model, batch=batch, **settings)
        done = subprocess.run(
            [sys.executable, "-c", START, json.dumps(asdict(block))],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout.splitlines()[-1])
        seconds = sum(result["step_seconds"][1:])
        counted = batch * (len(result["step_seconds"]) - 1)
        flops = sum(useful_flops(self._model, row, settings["method"]) for row in rows)
        figures = {
            "pairs per second": counted / seconds,
            "tokens per second": sum(row["tokens"] for row in rows) / seconds,
            "peak GiB": result["peak_bytes"] / 2**30,
            "gemm fraction": flops / seconds / result["gemm_flops"],
        }
        return {"figures": figures, "losses": result["losses"][1:]}


def tokenized(path: Path, model: Path) -> list[dict[str, Any]]:
    """The tokenized pairs of a preference file that fit `MAX_LENGTH`."""
    source = DataPreferences(source="path", path=path, validation_fraction=0)
    tokenizer = load_tokenizer(str(model))
    rows = []
    for pair in load_preferences(source, Path(), seed=0).train:
        prompt, chosen = completion_ids(tokenizer, pair.prompt, pair.chosen)
        _, rejected = completion_ids(tokenizer, pair.prompt, pair.rejected)
        if len(prompt) + max(len(chosen), len(rejected)) <= MAX_LENGTH:
            rows.append(as_row(pair.prompt_id, prompt, chosen, rejected))
    return rows


def as_row(name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    return {
        "id": name,
        "row": row_key(prompt, chosen, rejected),
        "tokens": len(prompt) + len(chosen) + len(rejected),
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
    }


def with_prompt_share(rows: list[dict[str, Any]], ratio: float) -> list[dict[str, Any]]:
    """Rows of about 600 tokens with prompts `ratio` times as long as each completion, cut from
    the texts of several rows."""
    completion = round(600 / (1 + ratio))
    ids = [t for row in rows for t in row["prompt_ids"] + row["chosen_ids"]]
    width = round(ratio * completion)
    made: list[dict[str, Any]] = []
    for start in range(0, len(ids) - width, width):
        row = rows[len(made) % len(rows)]
        if min(len(row["chosen_ids"]), len(row["rejected_ids"])) < completion // 2:
            continue
        chosen, rejected = (row[f"{name}_ids"][:completion] for name in ("chosen", "rejected"))
        made.append(as_row(row["id"], ids[start : start + width], chosen, rejected))
        if len(made) == PAIRS_PER_BLOCK:
            break
    return made


def ordered(rows: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Arrange the rows so that the trainers' sampler yields them in the given order."""
    sampler = GlobalBatchSampler(
        lengths=[1] * len(rows),
        global_batch_size=batch,
        micro_batch_size=batch,
        world_size=1,
        rank=0,
        seed=0,
    )
    places = [place for step in sampler.global_batches() for place in step]
    placed = dict(zip(places, rows, strict=True))
    return [placed[place] for place in range(len(rows))]


if __name__ == "__main__":
    main()
