"""What a judge is asked and what it answers, and the choice of the judge."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.config import (
    ClaudeConfig,
    HumanConfig,
    JudgeConfig,
    MetricJudgeConfig,
    OpenAiConfig,
    RewardModelConfig,
    ScorerConfig,
)
from dpo_dist.metrics import build_metrics
from dpo_dist.storage.records import Ballot, BallotOutcome, Prompt

if TYPE_CHECKING:
    from dpo_dist.judging.rubric import Form

BALLOTS = "ballots.jsonl"  # the journal in a phase's folder
GROUP = 500  # ballots that are put on disk together


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, in the order in which the judge sees them.

    `first` and `second` are names that the judge never sees. `repeat` counts how often the same
    was asked before.
    """

    prompt: Prompt
    first: str
    second: str
    first_text: str
    second_text: str
    repeat: int = 0


def alone(prompt: Prompt, name: str, text: str) -> Comparison:
    """One answer, to be scored."""
    return Comparison(prompt, name, "", text, "")


def rules_digest(rules: Sequence[Any]) -> str:
    """What stands in an identity for the rules by which a judge goes: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:12]


class Judge(ABC):
    """Compares answers. `identity` names who judges by which rules, down to their digest."""

    identity: str

    @abstractmethod
    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Yield one ballot per comparison, in the order in which they are decided; ballots that
        are decided together come together.

        A comparison is taken from the iterable when it is about to be asked.
        Raises `JudgeFailed` when it cannot go on; ballots yielded before stay valid.
        """

    def check(self) -> None:
        """Find out, before anything is paid for, whether the judge can do what is wanted.

        Raises `ConfigError` where it cannot, refused credentials included."""
        return

    def why_not_asked(self, comparison: Comparison) -> BallotOutcome | None:
        """The outcome of a comparison that would be asked in vain, or None."""
        return None

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """The tokens that asking will take, about; empty when it costs nothing."""
        return {}

    def key(self, comparison: Comparison) -> str:
        """The digest of all that a ballot depends on; equal keys need to be asked once."""
        return self._digest(comparison)

    def _digest(self, comparison: Comparison, more: Any = None) -> str:
        """SHA-256, in hexadecimal, of what the judge is shown and of `more`."""
        turns = [(message.role, message.content) for message in comparison.prompt.messages]
        texts = (comparison.first_text, comparison.second_text)
        shown = json.dumps([self.identity, turns, texts, comparison.repeat, more], sort_keys=True)
        return hashlib.sha256(shown.encode()).hexdigest()

    def ballot(self, comparison: Comparison, outcome: BallotOutcome, **more: Any) -> Ballot:
        """This judge's answer to a comparison."""
        return Ballot(
            key=self.key(comparison),
            prompt_id=comparison.prompt.id,
            first=comparison.first,
            second=comparison.second,
            repeat=comparison.repeat,
            outcome=outcome,
            judge=self.identity,
            **more,
        )


def build_scorer(config: ScorerConfig, folder: Path) -> Judge:
    """A language model that scores single answers (`alone`) instead of comparing two."""
    from dpo_dist.judging.rubric import SCORE

    return _language_model(config, folder, SCORE)


def _language_model(config: ScorerConfig, folder: Path, form: Form) -> Judge:
    match config:
        case ClaudeConfig():
            if config.transport == "batch":
                from dpo_dist.judging.claude_batches import ClaudeBatchJudge

                return ClaudeBatchJudge(config, folder, form)
            from dpo_dist.judging.claude import ClaudeJudge

            return ClaudeJudge(config, form)
        case OpenAiConfig():
            from dpo_dist.judging.openai_compatible import OpenAiJudge

            return OpenAiJudge(config, form)


def build_judge(config: JudgeConfig, folder: Path) -> Judge:
    """The judge that the run file names. `folder` is the phase's, for what a judge has to keep
    between an interrupted run and the next. Raises `ConfigError` for what it lacks."""
    match config:
        case MetricJudgeConfig():
            from dpo_dist.judging.metric_judge import MetricJudge

            metrics = build_metrics(config.metrics)
            return MetricJudge(metrics, config.weights or (1.0,) * len(metrics))
        case ClaudeConfig() | OpenAiConfig():
            from dpo_dist.judging.rubric import COMPARE

            return _language_model(config, folder, COMPARE)
        case RewardModelConfig():
            from dpo_dist.judging.reward_model import RewardModelJudge

            return RewardModelJudge(config)
        case HumanConfig():
            from dpo_dist.judging.human import HumanJudge

            return HumanJudge(config, folder / BALLOTS)
