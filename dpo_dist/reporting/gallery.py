"""Answers of the arms side by side: of the worst regressions and of evenly spread prompts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_dist.config import OWN_LABELS, ReportSection
from dpo_dist.reporting.answers import ARMS, Answers
from dpo_dist.reporting.report import RegressionRow
from dpo_dist.reporting.text import Part, visible, word_diff
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Generation, Prompt, Score, Verdict

MOST_CHARACTERS = 4_000  # maximum length of a text on the page


@dataclass(frozen=True)
class Text:
    """A text for the page, in parts without control characters. `left_out` is the number of omitted
    characters."""

    parts: tuple[Part, ...]
    left_out: int = 0

    @property
    def plain(self) -> str:
        """The text without marked differences."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class GalleryAnswer:
    """An arm's answer. `note` is the reason why its differences to SFT's answer are not marked."""

    arm: str
    text: Text
    cut_off: bool
    scores: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class GalleryEntry:
    """A prompt with its answers. The page filters by `tags` and sorts by `rank`: 0 for the worst
    regression, None if nothing got worse."""

    id: str
    prompt: Text
    reference: str
    verdict: str
    tags: tuple[str, ...]
    rank: int | None
    fell: tuple[str, ...]
    answers: tuple[GalleryAnswer, ...]


@dataclass(frozen=True)
class Gallery:
    """The samples in the order of the held-out prompts, and the number of all held-out prompts and
    of worst regressions."""

    samples: tuple[GalleryEntry, ...]
    prompts: int
    worst: int


def gallery(evaluate: Path, answers: Answers, section: ReportSection) -> Gallery:
    """The samples at the first decoding. Only their texts are kept in memory."""
    ids = [prompt.id for prompt in read_records(evaluate / "prompts.jsonl", Prompt)]
    wanted = chosen(ids, answers.regressions, section)
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for score in read_records(evaluate / "scores.jsonl", Score):
        if score.decoding == 0 and score.prompt_id in wanted:
            scores[score.prompt_id, score.arm][score.metric] = score.value
    texts: dict[str, dict[str, GalleryAnswer]] = defaultdict(dict)
    for answer in read_records(evaluate / "generations.jsonl", Generation):
        if answer.decoding == 0 and answer.prompt_id in wanted:
            arm, cut_off = answer.arm, answer.finish_reason == "length"
            values = scores[answer.prompt_id, arm]
            texts[answer.prompt_id][arm] = GalleryAnswer(arm, bounded(answer.text), cut_off, values)
    ranks = {regression.id: rank for rank, regression in enumerate(answers.regressions)}
    samples = (
        _sample(prompt, texts[prompt.id], answers, ranks.get(prompt.id))
        for prompt in read_records(evaluate / "prompts.jsonl", Prompt)
        if prompt.id in wanted
    )
    worst = min(section.regressions, len(answers.regressions))
    return Gallery(tuple(samples), len(ids), worst)


def chosen(
    ids: Sequence[str], regressions: Sequence[RegressionRow], section: ReportSection
) -> Collection[str]:
    """The ids of the worst regressions and of `samples` evenly spread prompts."""
    stride = max(1, len(ids) // section.samples)
    worst = {regression.id for regression in regressions[: section.regressions]}
    return worst | set(ids[::stride][: section.samples])


def bounded(text: str) -> Text:
    """The start of a text, with visible control characters."""
    shown = visible(text[:MOST_CHARACTERS])
    return Text((Part(shown),), max(0, len(text) - MOST_CHARACTERS))


def _sample(
    prompt: Prompt, texts: Mapping[str, GalleryAnswer], answers: Answers, rank: int | None
) -> GalleryEntry:
    verdict = answers.verdicts.get(prompt.id)
    reference = json.dumps(prompt.reference, ensure_ascii=False) if prompt.reference else ""
    fell = tuple(answers.regressions[rank].fell) if rank is not None else ()
    return GalleryEntry(
        id=visible(prompt.id),
        prompt=bounded(_conversation(prompt)),
        reference=bounded(reference).plain,
        verdict=_in_words(verdict) if verdict else "",
        tags=(
            *([_tag(verdict)] if verdict else []),
            *(["cut-off"] if "dpo" in texts and texts["dpo"].cut_off else []),
            *(["fell"] if fell else []),
        ),
        rank=rank,
        fell=fell,
        answers=_compared(texts),
    )


def _conversation(prompt: Prompt) -> str:
    """The turns, with their roles if there are several."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in prompt.messages)


def _compared(answers: Mapping[str, GalleryAnswer]) -> tuple[GalleryAnswer, ...]:
    """The answers, with the differences between sft's and dpo's marked."""
    if not set(ARMS) <= answers.keys():
        return tuple(answers.values())
    sft, dpo = (answers[arm] for arm in ARMS)
    found = word_diff(sft.text.parts[0].text, dpo.text.parts[0].text)
    marked = {
        "sft": replace(sft, text=replace(sft.text, parts=found.before)),
        "dpo": replace(dpo, text=replace(dpo.text, parts=found.after), note=found.note),
    }
    return tuple({**answers, **marked}.values())


def _tag(verdict: Verdict) -> str:
    if verdict.outcome == "preferred":
        return "won" if verdict.preferred == "dpo" else "lost"
    return verdict.outcome if verdict.outcome in ("tie", "inconsistent") else "missing"


def _in_words(verdict: Verdict) -> str:
    if verdict.preferred is None:
        return verdict.outcome.replace("_", " ")
    return f"judge prefers {OWN_LABELS[verdict.preferred]}"
