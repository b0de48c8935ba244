"""What a run file asks of its judges, and what that costs online and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path

from dpo_dist.config import ClaudeConfig, Config, JudgeConfig, OpenAiConfig
from dpo_dist.evaluation.comparison import pairs_of
from dpo_dist.judging.canaries import own_canaries
from dpo_dist.judging.claude_messages import expected_usage
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.rubric import CHARACTERS_A_TOKEN, COMPARE, SCORE, Form, read_rubric
from dpo_dist.judging.spend import read_prices
from dpo_dist.phases.canaries import most_requests
from dpo_dist.storage.records import Prompt
from dpo_dist.tools.plan.data import Texts
from dpo_dist.tools.plan.rates import Rates

SECONDS_A_REQUEST = 10.0  # online, where nothing was measured
BATCH_HOURS = 24.0  # at most, as the API promises


@dataclass(frozen=True)
class Asking:
    """One judge's work: `requests`, with the mean tokens of the prompt and of all the answers that
    a request shows."""

    phase: str
    judge: JudgeConfig
    form: Form
    requests: float
    prompt: float
    answers: float


@dataclass(frozen=True)
class Bill:
    """Millions of tokens, USD by transport (None: the price is unknown) and hours at most.

    A judge that is no language model has neither tokens nor a price.
    """

    asking: Asking
    read: float
    written: float
    online_usd: float | None
    batch_usd: float | None
    hours: float
    prices_as_of: str = ""


def askings(
    config: Config, prompts: Texts | None, held_out: Texts | None, answers: tuple[float, float]
) -> Iterator[Asking]:
    """All that judges are asked, of one round. `answers` are the mean tokens of a candidate and of
    an answer of the evaluation."""
    if config.judge is not None and config.sample is not None and prompts is not None:
        section = config.judge
        orders = (2 if section.both_orders else 1) + section.repeat
        requests = prompts.count.value * comb(len(config.sample.slots), 2) * orders
        if section.canaries is not None:
            own = own_canaries(section.canaries.path) if section.canaries.path else []
            requests += most_requests(section.canaries, own)
        both = 2 * answers[0]
        yield Asking("judge", section.judge, COMPARE, requests, prompts.prompt, both)
    evaluate = config.evaluate
    if evaluate is None or held_out is None:
        return
    count = held_out.count.value
    if evaluate.judge is not None:
        pairs = 1 if evaluate.pairwise == "headline" else len(pairs_of(evaluate.arms))
        both = 2 * answers[1]
        yield Asking("evaluate", evaluate.judge, COMPARE, 2 * count * pairs, held_out.prompt, both)
    for score in evaluate.judge_scores:
        requests = count * len(evaluate.arms)
        yield Asking("evaluate", score.judge, SCORE, requests, held_out.prompt, answers[1])


def bill(asking: Asking, rates: Rates) -> Bill:
    """What it costs. Raises `ConfigError` for a rubric or price table that cannot be read."""
    judge = asking.judge
    if not isinstance(judge, ClaudeConfig | OpenAiConfig):
        return Bill(asking, 0.0, 0.0, 0.0, 0.0, 0.0)
    count = round(asking.requests)
    usage = _usage(asking, judge, count, rates)
    written = usage["output_tokens"]
    read = sum(usage.values()) - written
    online = batch = None
    as_of = ""
    if isinstance(judge, ClaudeConfig):
        table = read_prices(judge.prices)
        price = table.models.get(judge.model)
        if price is not None:
            online, batch = price.of(usage), price.of(usage | {"batch_attempts": count})
            as_of = table.as_of
    seconds = rates.seconds_a_request or SECONDS_A_REQUEST
    hours = count * seconds / judge.concurrency / 3600
    if isinstance(judge, ClaudeConfig) and judge.transport == "batch":
        hours = BATCH_HOURS
    return Bill(asking, read / 1e6, written / 1e6, online, batch, hours, as_of)


def name_of(judge: JudgeConfig) -> str:
    """The judge's model, or its kind where it has none."""
    return Path(judge.model).name if hasattr(judge, "model") else judge.type


def _usage(
    asking: Asking, judge: ClaudeConfig | OpenAiConfig, count: int, rates: Rates
) -> dict[str, int]:
    """Tokens by kind: those of a request that compares were measured, or follow from the texts."""
    shown = asking.prompt + asking.answers + _frame(asking.form) / CHARACTERS_A_TOKEN
    rubric = len(read_rubric(judge.rubric)) / CHARACTERS_A_TOKEN
    if rates.usage and asking.form is COMPARE:
        return {kind: round(count * tokens) for kind, tokens in rates.usage.items()}
    return expected_usage(count, count * shown, rubric, batch=False)


def _frame(form: Form) -> int:
    """Characters of a question about nothing."""
    return len(form.question(Comparison(Prompt(id="-", messages=()), "a", "b", "", "")))
