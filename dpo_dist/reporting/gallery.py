"""Answers of the arms side by side: the worst regressions and an even spread of the prompts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_dist.config import ReportSection
from dpo_dist.reporting.answers import ARMS, Answers, Regression
from dpo_dist.reporting.diff import Part, word_diff
from dpo_dist.reporting.text import visible
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Generation, Prompt, Score, Verdict

MOST_CHARACTERS = 4_000  # of one text on the page


@dataclass(frozen=True)
class Text:
    """A text as it stands on the page, harmless, in parts; `left_out` characters are missing."""

    parts: tuple[Part, ...]
    left_out: int = 0

    @property
    def plain(self) -> str:
        """Without marks."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class GalleryAnswer:
    """An arm's answer; `note` says why its differences from SFT's are not marked."""

    arm: str
    text: Text
    cut_off: bool
    scores: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class GalleryEntry:
    """A prompt with its answers. `tags` are what the page filters by; `rank` orders regressions,
    the worst 0, and is None where nothing got worse."""

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
    """The samples, in the order of the held-out set, and of how many prompts they are."""

    samples: tuple[GalleryEntry, ...]
    prompts: int
    worst: int


def gallery(evaluate: Path, answers: Answers, section: ReportSection) -> Gallery:
    """The samples at the first decoding; only their texts are read into memory."""
    ids = [prompt.id for prompt in read_records(evaluate / "prompts.jsonl", Prompt)]
    wanted = chosen(ids, answers.regressions, section)
    prompts = {
        prompt.id: prompt
        for prompt in read_records(evaluate / "prompts.jsonl", Prompt)
        if prompt.id in wanted
    }
    texts: dict[str, dict[str, Generation]] = {}
    for answer in read_records(evaluate / "generations.jsonl", Generation):
        if answer.decoding == 0 and answer.prompt_id in wanted:
            texts.setdefault(answer.prompt_id, {})[answer.arm] = answer
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for score in read_records(evaluate / "scores.jsonl", Score):
        if score.decoding == 0 and score.prompt_id in wanted:
            scores.setdefault((score.prompt_id, score.arm), {})[score.metric] = score.value
    ranks = {regression.prompt_id: rank for rank, regression in enumerate(answers.regressions)}
    samples = [
        _sample(
            prompts[prompt_id],
            texts.get(prompt_id, {}),
            {arm: scores.get((prompt_id, arm), {}) for arm in texts.get(prompt_id, {})},
            answers.verdicts.get(prompt_id),
            ranks.get(prompt_id),
            answers.regressions,
        )
        for prompt_id in ids
        if prompt_id in wanted
    ]
    worst = min(section.regressions, len(answers.regressions))
    return Gallery(tuple(samples), len(ids), worst)


def chosen(
    ids: Sequence[str], regressions: Sequence[Regression], section: ReportSection
) -> Collection[str]:
    """The ids of the worst regressions, and of `samples` prompts spread evenly."""
    stride = max(1, len(ids) // section.samples)
    worst = {regression.prompt_id for regression in regressions[: section.regressions]}
    return worst | set(ids[::stride][: section.samples])


def bounded(text: str) -> Text:
    """The text's beginning, with what a browser or terminal would act on made visible."""
    shown = visible(text[:MOST_CHARACTERS])
    return Text((Part(shown),), max(0, len(text) - MOST_CHARACTERS))


def _sample(
    prompt: Prompt,
    texts: Mapping[str, Generation],
    scores: Mapping[str, Mapping[str, float]],
    verdict: Verdict | None,
    rank: int | None,
    regressions: Sequence[Regression],
) -> GalleryEntry:
    fell = tuple(regressions[rank].fell) if rank is not None else ()
    cut_off = "dpo" in texts and texts["dpo"].finish_reason == "length"
    answers = {
        arm: GalleryAnswer(arm, bounded(answer.text), answer.finish_reason == "length", scores[arm])
        for arm, answer in texts.items()
    }
    return GalleryEntry(
        id=visible(prompt.id),
        prompt=bounded(_conversation(prompt)),
        reference=_reference(prompt),
        verdict=_in_words(verdict),
        tags=(
            *([_tag(verdict)] if verdict else []),
            *(["cut-off"] if cut_off else []),
            *(["fell"] if fell else []),
        ),
        rank=rank,
        fell=fell,
        answers=_compared(answers),
    )


def _conversation(prompt: Prompt) -> str:
    """The turns, named where there is more than the user's one."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in prompt.messages)


def _reference(prompt: Prompt) -> str:
    if not prompt.reference:
        return ""
    return bounded(json.dumps(prompt.reference, ensure_ascii=False)).plain


def _compared(answers: Mapping[str, GalleryAnswer]) -> tuple[GalleryAnswer, ...]:
    """The answers, with what tells dpo's from sft's marked in both."""
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


def _in_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.outcome != "preferred":
        return verdict.outcome.replace("_", " ")
    return "judge prefers SFT+DPO" if verdict.preferred == "dpo" else "judge prefers SFT"
