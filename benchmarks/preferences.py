"""Time, memory and load balance of sixty thousand preference pairs before the training.

    python -m benchmarks.preferences [--pairs N] [--rows FILE] [--quick] [--json FILE]

A separate process runs the train phase of recipes/ultrafeedback/full.yaml on a synthetic
UltraFeedback-binarized (`synthetic_pairs.py`; with `--rows`, with the lengths of a file's rows):
loading, hygiene, leakage against the recipe's held-out prompts, tokenization, parquet. Only the
launch of the training is omitted. The dropped rows must be exactly the faults of the dataset.

A second process handles the data of an epoch like the trainers of all ranks: the sampler
distributes the rows, and the collator packs every micro-batch. Each pair must occur exactly once,
except for those that complete the last step.

Seconds are wall-clock seconds and CPU seconds (of all threads), which depend less on other work on
the machine. Memory is the peak of a process, including libraries. The imbalance is how many tokens
more than the average the rank with the most tokens has: in an optimizer step, and in simultaneous
micro-batches.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import MODEL, option_parser, publish
from benchmarks.sample_client import peak_mb
from benchmarks.synthetic_pairs import (
    lengths_of,
    log_normal_lengths,
    make_dataset,
    vocabulary_of,
)
from dpo_dist.config import Config, Train
from dpo_dist.config.runfile import load_config
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.storage.figures import write_figures
from dpo_dist.training.job import OUTCOME, TrainingJob, TrainingOutcome, accumulation_steps

RECIPE = Path("recipes/ultrafeedback/full.yaml")
PAIRS = 61_000


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rows", type=Path, help="draw lengths from preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL, help="model with the tokenizer")
    options = parser.parse_args()
    pairs = 2_000 if options.quick else options.pairs
    publish(preference_figures(pairs, options.model, options.rows), options.json)


def preference_figures(pairs: int, model: Path, rows: Path | None = None) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        config = recipe_on(folder / "dataset", model, folder / "runs")
        tokenizer = load_tokenizer(str(model))
        planted = make_dataset(
            folder / "dataset",
            vocabulary_of(tokenizer),
            pairs,
            held_out=held_out(config),
            measure=lengths_of(rows, tokenizer) if rows else log_normal_lengths,
        )
        figures, job, dropped = in_a_process(do_the_phase, config)
        too_long = dropped.pop("too_long", 0) + dropped.pop("prompt_too_long", 0)
        assert dropped == planted, (dropped, planted)
        epoch = in_a_process(deal_an_epoch, job)
    return {
        "pairs": pairs,
        "dropped as planted": planted.total(),
        "too long": too_long,
        **figures,
        "pairs a second": pairs / figures["phase: seconds"],
        **epoch,
    }


def recipe_on(dataset: Path, model: Path, output: Path) -> Config:
    """The recipe with another model, and with a dataset in a folder instead of the Hub's."""
    places = {
        "run.output_dir": output,
        "model.base": model.resolve(),
        "preferences.dataset": dataset,
        "evaluate.prompts.dataset": dataset,
    }
    return load_config(RECIPE, [f"{key}={place}" for key, place in places.items()])


def held_out(config: Config) -> int:
    assert config.evaluate is not None and config.evaluate.prompts.limit is not None
    return config.evaluate.prompts.limit


def in_a_process(work: Callable[[Any], Any], argument: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (argument,))


class Stopwatch:
    """The total wall-clock and CPU seconds of `with` blocks, and the process's peak memory after
    the last one."""

    def __init__(self) -> None:
        self.seconds, self.cpu, self.peak = 0.0, 0.0, 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started[0]
        self.cpu += time.process_time() - self._started[1]
        self.peak = peak_mb()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return timed

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"{name}: seconds": self.seconds,
            f"{name}: CPU seconds": self.cpu,
            f"{name}: peak MB": self.peak,
        }


def do_the_phase(config: Config) -> tuple[dict[str, float], TrainingJob, Counter[str]]:
    """Run the train phase without its training: (figures, the job, dropped rows by reason)"""
    from dpo_dist.phases import train
    from dpo_dist.phases.pipeline import run_phase
    from dpo_dist.runs.manifests import read_manifest
    from dpo_dist.runs.run import Run

    run = Run(config)
    jobs: list[TrainingJob] = []

    def launch(job: TrainingJob) -> None:
        jobs.append(job)
        outcome = TrainingOutcome(steps=0, selected_step=0, peak_rss_bytes=0)
        write_figures(job.out / OUTCOME, outcome)

    phase, loading, tokenizing = Stopwatch(), Stopwatch(), Stopwatch()
    module = vars(train)
    module.update(
        launch=launch,
        load_preferences=loading.around(module["load_preferences"]),
        write_token_rows=tokenizing.around(module["write_token_rows"]),
    )
    with phase:
        run_phase("train", run)
    manifest = read_manifest(run.directory("train"))
    figures = {
        **loading.figures("loading and hygiene"),
        **tokenizing.figures("tokenization to parquet"),
        **phase.figures("phase"),
    }
    return figures, jobs[0], Counter(manifest.counts.dropped)


def deal_an_epoch(job: TrainingJob) -> dict[str, float]:
    """Handle an epoch's data for all ranks, one after the other."""
    from datasets import Dataset

    from dpo_dist.training.preference_trainer import PairCollator
    from dpo_dist.training.sampler import GlobalBatchSampler

    settings = job.settings
    assert isinstance(settings, Train)
    world = job.shape.processes
    rows = Dataset.from_parquet(str(job.rows))
    lengths = list(rows["tokens"])
    dealing, packing = Stopwatch(), Stopwatch()
    with dealing:
        dealt = [
            list(
                GlobalBatchSampler(
                    lengths,
                    global_batch_size=settings.global_batch_size,
                    micro_batch_size=settings.micro_batch_size,
                    world_size=world,
                    rank=rank,
                    seed=job.seed,
                )
            )
            for rank in range(world)
        ]
    check_epoch(dealt, len(lengths), settings.global_batch_size)
    collate = PairCollator(pad_token_id=0, packed=True)
    packed = padded = 0
    with packing:
        for batch in (batch for batches in dealt for batch in batches):
            together = collate([rows[row] for row in batch])
            packed += len(together["pack"].source)
            padded += together["input_ids"].numel()
    return {
        **dealing.figures(f"sampler, {world} ranks"),
        **packing.figures("packing"),
        "packed positions, of padded ones": packed / padded,
        **imbalance(dealt, lengths, accumulation_steps(settings, world)),
    }


def check_epoch(dealt: Sequence[Sequence[Sequence[int]]], pairs: int, global_batch: int) -> None:
    """Every pair must occur once, and twice if it also completes the last step."""
    times = Counter(row for batches in dealt for batch in batches for row in batch)
    filled_up = -pairs % global_batch
    assert sorted(times) == list(range(pairs))
    assert sorted(times.values(), reverse=True) == [2] * filled_up + [1] * (pairs - filled_up)


def imbalance(
    dealt: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int], accumulation: int
) -> dict[str, float]:
    """How many tokens more than the average the rank with the most tokens has, in percent.

    `dealt` are the micro-batches of every rank. Under ZeRO the ranks wait for each other in every
    micro-batch: `waiting` is the time that this adds to an epoch with equal shares.
    """
    loads = [[sum(lengths[row] for row in batch) for batch in batches] for batches in dealt]
    moments = list(zip(*loads, strict=True))
    steps = [
        [sum(own) for own in zip(*moments[start : start + accumulation], strict=True)]
        for start in range(0, len(moments), accumulation)
    ]

    def excess(shares: Sequence[int]) -> float:
        return 100 * (max(shares) * len(shares) / sum(shares) - 1)

    slowest = sum(max(moment) for moment in moments) * len(dealt)
    return {
        "imbalance of a step, median %": statistics.median(map(excess, steps)),
        "imbalance of a step, worst %": max(map(excess, steps)),
        "imbalance of a micro-batch, median %": statistics.median(map(excess, moments)),
        "waiting, % of the epoch": 100 * (slowest / sum(map(sum, moments)) - 1),
    }


if __name__ == "__main__":
    main()
