"""Standard benchmarks by lm-evaluation-harness: what the training may have cost elsewhere.

A document of a task is what a prompt is elsewhere: the arms are compared on the same documents.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from dpo_dist.config import Benchmarks, Better
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.evaluation.comparison import Points
from dpo_dist.storage.records import Score
from dpo_dist.system.console import warn


@dataclass(frozen=True)
class BenchmarkResult:
    """A metric of a task: its value for each document, by the document's number."""

    name: str
    better: Better | None
    values: dict[str, float]


def check_tasks(section: Benchmarks) -> None:
    """Load the tasks with their data, which the harness fetches where it has to.

    Raises `MissingDependency` without the harness, and `ConfigError` for a task that it does not
    know, whose data cannot be had, or that executes what the model writes.
    """
    manager = _task_manager(section.include_path)
    where = "evaluate.benchmarks.tasks"
    if unknown := [task for task in section.tasks if task not in manager.task_index]:
        raise ConfigError(
            f"{where}: lm-evaluation-harness has no {', '.join(unknown)}; `lm_eval ls tasks` "
            "shows the available tasks"
        )
    try:
        loaded = manager.load(list(section.tasks))["tasks"]
    except Exception as error:  # of the hub, the network, a file or a task's template
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
    """All tasks on one model, by transformers in this process."""
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
        bootstrap_iters=0,  # the intervals are ours
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    gc.collect()
    torch.cuda.empty_cache()
    return read_results(found)


def read_results(found: Mapping[str, Any]) -> list[BenchmarkResult]:
    """The values by document from what `lm_eval.simple_evaluate` returns.

    A metric that is no mean over documents (a perplexity, a corpus's BLEU) is left out and warned
    of: it has no value by document to compare.
    """
    results = []
    for task, samples in found["samples"].items():
        columns: dict[tuple[str, str], dict[str, Any]] = {}
        for sample in samples:
            for metric in sample["metrics"]:
                column = columns.setdefault((metric, sample["filter"]), {})
                column[str(sample["doc_id"])] = sample[metric]
        for (metric, filtered), values in columns.items():
            name = f"{task}, {metric}" + ("" if filtered == "none" else f" ({filtered})")
            numbers = {doc: float(v) for doc, v in values.items() if isinstance(v, int | float)}
            whole = found["results"][task].get(f"{metric},{filtered}")
            mean = math.fsum(numbers.values()) / max(1, len(numbers))
            if (
                len(numbers) < len(values)
                or not isinstance(whole, int | float)
                or not math.isclose(whole, mean, abs_tol=1e-9)
            ):
                warn(f"benchmark {name} is not a mean over documents and is left out")
                continue
            higher = found["higher_is_better"][task].get(metric)
            better: Better | None = None if higher is None else "higher" if higher else "lower"
            results.append(BenchmarkResult(name, better, numbers))
    return results


def benchmark_rows(
    arms: Mapping[str, Sequence[BenchmarkResult]],
) -> tuple[list[Points], list[Score]]:
    """The figures to compare, and their values as scores of the documents."""
    values: dict[str, list[float]] = {}
    for result in chain(*arms.values()):
        values.setdefault(result.name, []).extend(result.values.values())
    figures = {
        result.name: Points(
            key=f"benchmark:{result.name}",
            label=f"Benchmark {result.name}",
            unit="share" if all(0 <= value <= 1 for value in values[result.name]) else "points",
            better=result.better,
            judged=False,
        )
        for result in chain(*arms.values())
    }
    scores = [
        Score(prompt_id=document, arm=arm, decoding=0, metric=figures[result.name].key, value=value)
        for arm, results in arms.items()
        for result in results
        for document, value in result.values.items()
    ]
    return list(figures.values()), scores


@cache  # its index of some 15,000 tasks takes seconds
def _task_manager(folder: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError:
        raise MissingDependency("lm_eval", "benchmarks") from None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluate.benchmarks.include_path: {folder} is not a directory")
    return TaskManager(include_path=None if folder is None else str(folder))
