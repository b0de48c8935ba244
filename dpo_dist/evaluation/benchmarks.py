"""Standard benchmarks by lm-evaluation-harness, to detect what the training made worse.

A task's documents take the place of prompts: the arms are compared on the same documents.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from dpo_dist.config import Benchmarks, Better
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.evaluation.comparison import Points
from dpo_dist.storage.records import Score
from dpo_dist.system.console import warn

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class BenchmarkResult:
    """A metric of a task: its value for each document, by document id."""

    name: str
    better: Better | None
    values: dict[str, float]


def check_tasks(section: Benchmarks) -> None:
    """Load the tasks and download their data if necessary. Raises `MissingDependency` without the
    harness, and `ConfigError` for a task that is unknown, cannot be loaded, or executes code
    written by the model."""
    manager = _task_manager(section.include_path)
    where = "evaluate.benchmarks.tasks"
    if unknown := [task for task in section.tasks if task not in manager.task_index]:
        raise ConfigError(
            f"{where}: lm-evaluation-harness has no {', '.join(unknown)}; `lm_eval ls tasks` "
            "shows the available tasks"
        )
    try:
        loaded = manager.load(list(section.tasks))["tasks"]
    except Exception as error:  # from the hub, the network, a file or a task's template
        raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if unsafe := [name for name, task in loaded.items() if getattr(task, "UNSAFE_CODE", False)]:
        raise ConfigError(f"{where}: {', '.join(unsafe)} would execute code written by the model")


def run_benchmarks(
    section: Benchmarks,
    model: str,
    adapter: Path | None,
    *,
    dtype: str,
    seed: int,
    trust_remote_code: bool,
) -> list[BenchmarkResult]:
    """Run all tasks on one model, with transformers in this process."""
    import lm_eval
    import torch

    weights = {"pretrained": model, "dtype": dtype, "trust_remote_code": trust_remote_code}
    if adapter is not None:
        weights["peft"] = str(adapter)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=weights,
        tasks=list(section.tasks),
        limit=section.limit,
        batch_size=section.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        apply_chat_template=section.chat_template,
        task_manager=_task_manager(section.include_path),
        bootstrap_iters=0,  # intervals are computed here
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    gc.collect()
    torch.cuda.empty_cache()
    return read_results(found)


class HarnessSample(BaseModel, extra="allow"):
    """A document of a task; each metric's value is a field with the metric's name."""

    doc_id: int | str
    filter: str
    metrics: list[str]


class HarnessResults(BaseModel):
    """The part of `lm_eval.simple_evaluate`'s result that is read."""

    samples: dict[str, list[HarnessSample]]
    results: dict[str, dict[str, object]]
    higher_is_better: dict[str, dict[str, bool | None]]


def read_results(found: Mapping[str, object]) -> list[BenchmarkResult]:
    """The values by document, from the result of `lm_eval.simple_evaluate`. A metric that is not a
    mean over documents, such as perplexity or corpus BLEU, has no values to compare; it is left out
    with a warning."""
    results = []
    harness = HarnessResults.model_validate(found)
    for task, samples in harness.samples.items():
        columns: dict[tuple[str, str], dict[str, object]] = {}
        for sample in samples:
            for metric in sample.metrics:
                column = columns.setdefault((metric, sample.filter), {})
                column[str(sample.doc_id)] = getattr(sample, metric)
        for (metric, filtered), values in columns.items():
            name = f"{task}, {metric}" + ("" if filtered == "none" else f" ({filtered})")
            numbers = {doc: float(v) for doc, v in values.items() if isinstance(v, int | float)}
            reported = harness.results[task].get(f"{metric},{filtered}")
            mean = math.fsum(numbers.values()) / max(1, len(numbers))
            if (
                len(numbers) < len(values)
                or not isinstance(reported, int | float)
                or not math.isclose(reported, mean, abs_tol=1e-9)
            ):
                warn(f"benchmark {name} is not a mean over documents and is left out")
                continue
            higher = harness.higher_is_better[task].get(metric)
            better: Better | None = None if higher is None else "higher" if higher else "lower"
            results.append(BenchmarkResult(name, better, numbers))
    return results


def benchmark_rows(
    arms: Mapping[str, Sequence[BenchmarkResult]],
) -> tuple[list[Points], list[Score]]:
    """The benchmark metrics of all arms, and their values as scores of the documents."""
    metrics: dict[str, Points] = {}
    scores: list[Score] = []
    for arm, results in arms.items():
        for result in results:
            key, values = f"benchmark:{result.name}", result.values
            share = all(0 <= value <= 1 for value in values.values())
            if key in metrics:
                share = share and metrics[key].unit == "share"
            unit = "share" if share else "points"
            metrics[key] = Points(key, f"Benchmark {result.name}", unit, result.better, False)
            scores += [
                Score(prompt_id=document, arm=arm, decoding=0, metric=key, value=value)
                for document, value in values.items()
            ]
    return list(metrics.values()), scores


@cache  # indexing about 15,000 tasks takes seconds
def _task_manager(folder: Path | None) -> TaskManager:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError:
        raise MissingDependency("lm_eval", "benchmarks") from None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluate.benchmarks.include_path: {folder} is not a directory")
    return TaskManager(include_path=None if folder is None else str(folder))
