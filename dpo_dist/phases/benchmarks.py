"""The benchmarks of the evaluate phase: every arm once, kept as soon as it is done."""

from __future__ import annotations

from dataclasses import asdict

from dpo_dist.config import Config
from dpo_dist.evaluation.benchmarks import BenchmarkResult, benchmark_rows, run_benchmarks
from dpo_dist.evaluation.comparison import Points
from dpo_dist.runs.weights import arm_weights
from dpo_dist.storage.artifacts import PhaseDirectory, read_json, write_json
from dpo_dist.storage.records import Score
from dpo_dist.system.console import say


def ask_benchmarks(config: Config, out: PhaseDirectory) -> tuple[list[Points], list[Score]]:
    """What every arm reaches on the tasks of `evaluate.benchmarks`; nothing without that section.

    An arm's results are in `benchmarks-ARM.json`, which an interrupted phase goes on from.
    """
    assert config.evaluate is not None
    section = config.evaluate.benchmarks
    if section is None:
        return [], []
    arms: dict[str, list[BenchmarkResult]] = {}
    for arm in config.evaluate.arms:
        path = out.path / f"benchmarks-{arm}.json"
        if not path.exists():
            say(f"evaluate: benchmarks of arm `{arm}`")
            weights = arm_weights(config, arm)
            results = run_benchmarks(
                section,
                weights.model,
                weights.adapter,
                dtype=config.model.dtype,
                seed=config.run.seed,
                trust_remote_code=config.model.trust_remote_code,
            )
            write_json(path, {"results": [asdict(result) for result in results]})
        arms[arm] = [BenchmarkResult(**result) for result in read_json(path)["results"]]
    return benchmark_rows(arms)
