"""The requests of a run to its judges, and their cost online and in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Literal

from dpo_dist.config import BilledJudge
from dpo_dist.config.judging import JudgeResource, LanguageModelConfig
from dpo_dist.evaluation.comparison import pairs_of
from dpo_dist.judging.canaries import own_canaries
from dpo_dist.judging.claude import expected_usage
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.rubric import CHARACTERS_PER_TOKEN, COMPARE, SCORE, Form, read_rubric
from dpo_dist.judging.spend import price_of
from dpo_dist.phases.asking import most_canary_requests
from dpo_dist.storage.records import Prompt
from dpo_dist.tools.plan.rates import Rates
from dpo_dist.tools.plan.subject import PlannedWork, evaluations

SECONDS_PER_REQUEST = 10.0  # online, if nothing was measured
BATCH_HOURS = 24.0  # the maximum that the API promises


@dataclass(frozen=True)
class Asking:
    """One judge's work in all rounds. On average, a request has `prompt` tokens of the prompt and
    `answers` tokens of all its answers."""

    phase: str
    judge: JudgeResource
    form: Form
    requests: float
    prompt: float
    answers: float


@dataclass(frozen=True)
class UsdByTransport:
    """USD online and in batches; None: the price is unknown, or the judge has no batches."""

    online: float | None
    batch: float | None


@dataclass(frozen=True)
class Bill:
    """The cost of a judge's work, and its maximum hours. An unpaid judge costs 0 USD; only language
    models have tokens."""

    phase: str
    judge: str
    type: str
    transport: Literal["online", "batch"] | None
    requests: int
    million_tokens_read: float
    million_tokens_written: float
    usd: UsdByTransport
    max_usd: float | None
    hours: float
    prices_as_of: str


def askings(subject: PlannedWork) -> Iterator[Asking]:
    """The work of every judge of the run."""
    section, work = subject.config.judge, subject.sampling
    if section is not None and work is not None:
        orders = (2 if section.both_orders else 1) + section.repeat
        requests = work.prompts.count.value * comb(work.per_prompt, 2) * orders * work.rounds
        if section.canaries is not None:
            own = own_canaries(section.canaries.path) if section.canaries.path else []
            requests += most_canary_requests(section.canaries, own) * evaluations(subject.run)
        both = 2 * work.length.value
        yield Asking("judge", section.judge, COMPARE, requests, work.prompts.prompt, both)
    evaluate, work = subject.config.evaluate, subject.evaluation
    if evaluate is None or work is None:
        return
    prompts, answer = work.prompts, work.length.value
    count = prompts.count.value * work.rounds
    if evaluate.judge is not None:
        pairs = 1 if evaluate.pairwise == "headline" else len(pairs_of(list(evaluate.named_arms)))
        requests = 2 * count * pairs
        yield Asking("evaluate", evaluate.judge, COMPARE, requests, prompts.prompt, 2 * answer)
    for score in evaluate.judge_scores:
        requests = count * len(evaluate.arms)
        yield Asking("evaluate", score.judge, SCORE, requests, prompts.prompt, answer)


def bill(asking: Asking, rates: Rates) -> Bill:
    """The cost of the work. Raises `ConfigError` if a rubric or price table cannot be read."""
    judge, count = asking.judge, round(asking.requests)
    tokens = _tokens(asking, judge, count, rates) if isinstance(judge, LanguageModelConfig) else {}
    written = tokens.get("output_tokens", 0)
    usd, as_of = _usd(judge, count, tokens)
    seconds = rates.measured(rates.seconds_per_request, SECONDS_PER_REQUEST).value
    hours = count * seconds / judge.requests_at_once / 3600 if judge.paid else 0.0
    return Bill(
        phase=asking.phase,
        judge=Path(judge.name.partition(":")[2] or judge.name).name,
        type=judge.type,
        transport=judge.sent,
        requests=count,
        million_tokens_read=(sum(tokens.values()) - written) / 1e6,
        million_tokens_written=written / 1e6,
        usd=usd,
        max_usd=judge.max_usd if isinstance(judge, BilledJudge) else None,
        hours=BATCH_HOURS if judge.sent == "batch" else hours,
        prices_as_of=as_of,
    )


def _usd(judge: JudgeResource, count: int, tokens: Mapping[str, int]) -> tuple[UsdByTransport, str]:
    """(USD, date of the price table): 0 for a judge that is not paid, None for an unknown price."""
    if not judge.paid:
        return UsdByTransport(0.0, 0.0), ""
    price, as_of = None, ""
    if isinstance(judge, BilledJudge) and (tokens or judge.usd_per_request is not None):
        price, as_of = price_of(judge)
    if price is None:
        return UsdByTransport(None, None), ""
    usage = {**tokens, "attempts": count}
    batch = price.of({**usage, "batch_attempts": count}) if judge.sent else None
    return UsdByTransport(price.of(usage), batch), as_of


def _tokens(asking: Asking, judge: LanguageModelConfig, count: int, rates: Rates) -> dict[str, int]:
    """The tokens of `count` requests, by kind. Those of comparisons may have been measured; all
    others follow from the lengths of the texts."""
    rubric = len(read_rubric(judge.rubric)) / CHARACTERS_PER_TOKEN
    if rates.usage and asking.form is COMPARE:
        return {kind: round(count * tokens) for kind, tokens in rates.usage.items()}
    shown = asking.prompt + asking.answers + _frame(asking.form) / CHARACTERS_PER_TOKEN
    usage = expected_usage(count, count * shown, rubric, batch=False)
    return {kind: tokens for kind, tokens in usage.items() if kind.endswith("_tokens")}


def _frame(form: Form) -> int:
    """The characters of a question without prompt and answers."""
    return len(form.question(Comparison(Prompt(id="-", messages=()), "a", "b", "", "")))
