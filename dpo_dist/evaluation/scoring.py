"""Every metric on every answer: the scores, and what has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dpo_dist.metrics import Answer, Labels, Metric, NotScored, attempt
from dpo_dist.storage.records import Generation, Prompt, Score, Unscored
from dpo_dist.system.console import warn


@dataclass(frozen=True)
class Labelled:
    """The labels of a metric: of the prompts by id, and of each arm's answers by the prompt's id.

    Only what the metric could score is here. An answer's label may be None.
    """

    gold: dict[str, Hashable] = field(default_factory=dict)
    given: dict[tuple[int, str], dict[str, Hashable | None]] = field(default_factory=dict)

    def add(self, labels: Labels, prompt: Prompt, generation: Generation, answer: Answer) -> None:
        self.gold[prompt.id] = labels.gold(prompt)
        given = self.given.setdefault((generation.decoding, generation.arm), {})
        given[prompt.id] = labels.given(answer)


@dataclass(frozen=True)
class Scored:
    """`labelled` is by the metric's key."""

    scores: list[Score]
    unscored: list[Unscored]
    labelled: dict[str, Labelled]


def score_answers(
    metrics: Sequence[Metric], prompts: Mapping[str, Prompt], generations: Iterable[Generation]
) -> Scored:
    """Score all answers. What a metric cannot score is kept with its reason, and the first of
    each metric is warned of."""
    scored = Scored([], [], {metric.key: Labelled() for metric in metrics if metric.labels})
    for generation in generations:
        prompt = prompts[generation.prompt_id]
        answer = Answer(generation.text, len(generation.token_ids), generation.finish_reason)
        for metric in metrics:
            row = {
                "prompt_id": prompt.id,
                "arm": generation.arm,
                "decoding": generation.decoding,
                "metric": metric.key,
            }
            try:
                value = attempt(metric, prompt, answer)
            except NotScored as error:
                unscored = {**row, "reason": error.reason, "message": str(error)}
                scored.unscored.append(Unscored.model_validate(unscored))
                continue
            scored.scores.append(Score.model_validate({**row, "value": value}))
            if metric.labels:
                scored.labelled[metric.key].add(metric.labels, prompt, generation, answer)
    _warn(scored.unscored)
    return scored


def _warn(unscored: Sequence[Unscored]) -> None:
    counts = Counter(row.metric for row in unscored)
    first: dict[str, Unscored] = {}
    for row in unscored:
        first.setdefault(row.metric, row)
    for metric, row in first.items():
        warn(
            f"answers without a score: {counts[metric]}, such as the answer of arm `{row.arm}` to "
            f"{row.prompt_id!r}: {row.message} (all are listed in unscored.jsonl)"
        )
