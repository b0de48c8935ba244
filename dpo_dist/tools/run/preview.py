"""What `run` or a phase would do: `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dpo_dist.config import DataSource, Lora, Optimization, required
from dpo_dist.data.preferences import preference_sources
from dpo_dist.data.readers import source_name
from dpo_dist.errors import FingerprintMismatch
from dpo_dist.phases.pipeline import changes_of, check_before_work
from dpo_dist.runs.run import Run, Step
from dpo_dist.storage.artifacts import FINGERPRINT
from dpo_dist.system.console import counted
from dpo_dist.tools.plan.data import Answering, Given
from dpo_dist.tools.plan.judging import Bill, askings, bill
from dpo_dist.tools.plan.rates import Rates
from dpo_dist.tools.plan.subject import PlannedWork, find_work
from dpo_dist.training.launch_shape import LaunchShape

START, CONTINUE, DONE = "start", "continue", "done"
OVER = "start over, the old directory is moved aside"
LATER = "done; starts over or is refused if its inputs change"


def preview(run: Run, steps: Sequence[Step], *, force: bool = False) -> Iterator[str]:
    """Lines that say what the steps would do, and what their judges may cost. Nothing is written.
    Raises what the steps themselves would raise before they start."""
    check_before_work(run)
    actions = list(zip(steps, _actions(run, steps, force=force), strict=True))
    work = find_work(run, Given(), Rates())
    yield f"{run.config.run.name}: {run.root}"
    for step, action in actions:
        yield f"{step}: {action}"
        if action != DONE:
            yield from (f"    {line}" for line in _work(step.phase, run.at_round(step.round), work))
    ahead = {step.phase for step, action in actions if action != DONE}
    yield from _costs([bill(asked, Rates()) for asked in askings(work) if asked.phase in ahead])
    yield "dry run: nothing was started"


def _actions(run: Run, steps: Sequence[Step], *, force: bool) -> Iterator[str]:
    """What happens to each step. Once a step has work to do, the inputs of later ones are unknown.
    Raises `FingerprintMismatch`, as the step would."""
    known = True
    for step in steps:
        at = run.at_round(step.round)
        path = at.directory(step.phase)
        differences = changes_of(step.phase, at) if known else []
        if step.phase == "report":
            yield START
        elif differences and not force:
            lines = "\n".join(f"  {line}" for line in differences)
            raise FingerprintMismatch(f"{path} was made with other settings or inputs:\n{lines}")
        elif at.is_complete(step.phase) and not differences:
            yield DONE if known else LATER
            continue
        elif differences:
            yield OVER
        else:
            yield CONTINUE if (path / FINGERPRINT).exists() else START
        known = False


def _work(phase: str, run: Run, work: PlannedWork) -> Iterator[str]:
    """The inputs of a phase, and the amount of its work."""
    config = run.config
    match phase:
        case "sft":
            section = required(config.sft)
            yield f"from {_named(section.data)} and {config.model.base}"
            yield _training(section)
        case "sample":
            prompts = required(config.sample).prompts
            yield f"from {_named(prompts)} and {_policy(run)}"
            yield _answers(work.sampling, required(config.sample).engine.type, "slot")
        case "judge":
            yield f"from {run.directory('sample') / 'candidates.jsonl'}"
            yield f"judge {required(config.judge).judge.name}"
        case "train":
            sources, _ = preference_sources(config.preferences, run.directory("judge"))
            yield f"from {' and '.join(map(_named, sources))} and {_policy(run)}"
            yield _training(required(config.train))
        case "evaluate":
            arms = ", ".join(str(arm) for arm in required(config.evaluate).arms)
            yield f"from {_named(required(config.evaluate).prompts)}, arms {arms}"
            yield _answers(work.evaluation, config.evaluation_engine.type, "arm and decoding")
        case "report":
            yield f"from {run.root}: {', '.join(config.report.formats)}"


def _policy(run: Run) -> str:
    """The model that sampling and training start from."""
    if run.round > 1:
        return str(run.at_round(run.round - 1).directory("train") / "model")
    sft = run.config.model.sft
    return str(run.root / "sft" / "model") if sft == "phase" else sft or run.config.model.base


def _named(source: DataSource) -> str:
    name = source_name(source)
    return f"{name} (the first {source.limit})" if source.limit else name


def _training(section: Optimization) -> str:
    method = f"lora r={section.method.r}" if isinstance(section.method, Lora) else "all weights"
    processes = LaunchShape.of(section).processes
    return (
        f"{method}, {counted(processes, 'process', 'processes')} "
        f"({section.accelerate_file.stem}), num_epochs {section.num_epochs:g}, "
        f"global_batch_size {section.global_batch_size}"
    )


def _answers(answering: Answering | None, engine: str, per: str) -> str:
    if answering is None:
        return f"engine {engine}; the prompts are not on this machine, so their number is unknown"
    prompts = answering.prompts.count.value
    return (
        f"engine {engine}: {counted(round(prompts), 'prompt')}, one answer per {per}: "
        f"{counted(round(prompts * answering.per_prompt), 'answer')}"
    )


def _costs(bills: Sequence[Bill]) -> Iterator[str]:
    """The judges' requests and cost, in all rounds."""
    total, unknown = 0.0, False
    for found in bills:
        usd = found.usd.batch if found.transport == "batch" else found.usd.online
        requests = f"{found.phase}: at most {counted(found.requests, 'request')} to {found.judge}"
        limit = "" if found.max_usd is None else f", limit max_usd {found.max_usd:g}"
        if usd is None:
            unknown = True
            yield f"{requests}: the price is unknown{limit}"
            continue
        total += usd if found.max_usd is None else min(usd, found.max_usd)
        yield f"{requests}: {f'about ${usd:.2f}{limit}' if usd else 'free'}"
    more = " and what has no known price" if unknown else ""
    yield f"cost of the judges: at most about ${total:.2f}{more}"
