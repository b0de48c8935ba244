"""Scores all answers with all metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dpo_dist.metrics import Answer, Metric, NotScored, attempt
from dpo_dist.storage.records import Generation, Prompt, Score, Unscored
from dpo_dist.system.console import warn


@dataclass(frozen=True)
class Labelled:
    """The labels of a metric: gold labels by prompt id, and given labels by (decoding, arm) and
    prompt id. Only scored answers are here; their label may be None."""

    gold: dict[str, Hashable] = field(default_factory=dict)
    given: dict[tuple[int, str], dict[str, Hashable | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """The scores, the answers without a score, and the labels by metric key."""

    scores: list[Score]
    unscored: list[Unscored]
    labelled: dict[str, Labelled]


def score_answers(
    metrics: Sequence[Metric], prompts: Mapping[str, Prompt], generations: Iterable[Generation]
) -> Scored:
    """Score all answers. An answer without a score is kept with the reason; the first one of each
    metric is printed as a warning."""
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
                labelled = scored.labelled[metric.key]
                labelled.gold[prompt.id] = metric.labels.gold(prompt)
                given = labelled.given.setdefault((generation.decoding, generation.arm), {})
                given[prompt.id] = metric.labels.given(answer)
    for key, count in Counter(row.metric for row in scored.unscored).items():
        first = next(row for row in scored.unscored if row.metric == key)
        warn(
            f"answers without a score: {count}, such as the answer of arm `{first.arm}` to "
            f"{first.prompt_id!r}: {first.message} (all are listed in unscored.jsonl)"
        )
    return scored
