"""Reads the preference pairs of a data source, row by row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from dpo_dist.config import PreferenceSource
from dpo_dist.data.formats import SCORES, recognised
from dpo_dist.data.pair_formats import PAIRS, Conversation, LabelledAnswer, Ranked, Two, number_of
from dpo_dist.data.prompts import exact_digest
from dpo_dist.data.readers import Row, source_name
from dpo_dist.data.rows import check_text, read_rows
from dpo_dist.data.turns import with_options
from dpo_dist.storage.records import PreferencePair

Found = PreferencePair | str  # a text is the reason why there is no pair


def pairs_in(source: PreferenceSource) -> Iterator[Found]:
    """The pairs of a source's rows; for a pair that is not used, the reason. Raises `DataError`
    naming file and row."""
    waiting: dict[str, list[tuple[Row, LabelledAnswer]]] = defaultdict(list)
    paired, known, row = False, None, None
    for row in read_rows(source):
        known = recognised(PAIRS, row, source_name(source), "preference pairs", known)
        read = _status(row) or known.read(row)
        if not isinstance(read, LabelledAnswer):
            yield from _found(row, read, source)
            continue
        others = waiting[exact_digest(read.prompt)]
        if not others or others[0][1].good == read.good:
            others.append((row, read))
            continue
        place, other = others.pop(0)
        good, bad = (read, other) if read.good else (other, read)
        paired = True
        two = Two(read.prompt, (good.answer,), (bad.answer,))
        yield from _found(place, two, source)
    left = sum(map(len, waiting.values()))
    if left and not paired:
        assert row is not None
        raise row.error(
            "no prompt has an answer with `label: true` and one with `label: false`; DPO learns "
            "from pairs. KTO, which learns from single labels, is not part of this project"
        )
    yield from ("unpaired" for _ in range(left))


def _found(row: Row, read: Ranked | Two | str, settings: PreferenceSource) -> Iterator[Found]:
    if isinstance(read, str):
        yield read
        return
    if isinstance(read, Two):
        yield from _enough([(_pair(row, read), _margin(row))], row, settings)
        return
    ranked = sorted(read.answers, key=lambda answer: answer[1], reverse=True)
    if len(ranked) < 2:
        yield "unrated"
        return
    chosen = (
        [(ranked[0], ranked[-1])] if settings.pairs == "best_worst" else combinations(ranked, 2)
    )
    pairs: list[tuple[Found, float | None]] = [
        ("tie", None)
        if better[1] == worse[1]
        else (_pair(row, Two(read.prompt, (better[0],), (worse[0],))), better[1] - worse[1])
        for better, worse in chosen
    ]
    yield from _enough(pairs, row, settings)


def _enough(
    pairs: Iterable[tuple[Found, float | None]], row: Row, settings: PreferenceSource
) -> Iterator[Found]:
    """The pairs with at least `min_margin`."""
    least = settings.min_margin
    for pair, margin in pairs:
        if least is None or isinstance(pair, str):
            yield pair
        elif margin is None:
            columns = ", ".join(f"`{a}` and `{b}`" for a, b in SCORES)
            raise row.error(f"`min_margin` needs the column `margin`, or two scores: {columns}")
        else:
            yield pair if margin >= least else "below_min_margin"


def _status(row: Row) -> str | None:
    """The reason in the column `status` of distilabel and Argilla."""
    status = row.values.get("status")
    if status in (None, "unchanged", "swapped", "submitted", "completed"):
        return None
    if status in ("tie", "discarded", "pending", "draft"):
        return str(status)
    raise row.error(
        f"`status` is {status!r}; known are tie, unchanged, swapped and Argilla's. "
        "If it does not matter: `ignore_columns: [status]`"
    )


def _margin(row: Row) -> float | None:
    values = row.values
    if "margin" in values:
        return number_of(row, "margin", values["margin"])
    for better, worse in (*SCORES, *_SHP_SCORES.get(str(values.get("labels")), ())):
        if better in values and worse in values:
            scores = (number_of(row, key, values[key]) for key in (better, worse))
            return next(scores) - next(scores)
    return None


_SHP_SCORES = {"1": (("score_A", "score_B"),), "0": (("score_B", "score_A"),)}


def _pair(row: Row, two: Two) -> Found:
    before, answers = [], []
    for key, turns in (("chosen", two.chosen), ("rejected", two.rejected)):
        if not turns:
            raise row.error(f"`{key}` is missing or empty")
        if turns[-1].role != "assistant":
            if two.prompt is None:
                return "no_answer"
            raise row.error(f"`{key}` must end with an assistant turn")
        before.append(_context(row, key, two.prompt, turns[:-1]))
        answers.append(turns[-1])
    if before[0] != before[1]:
        # Usual in public transcripts, such as HH-RLHF's, which nobody can edit.
        if two.prompt is None:
            return "different_prompts"
        raise row.error(
            "`chosen` and `rejected` answer different prompts, or are completions of several turns "
            "that differ before the last one. A pair has one answer each: end `prompt` before the "
            "turn that differs"
        )
    context = with_options(row, before[0])
    if context[-1].role not in ("user", "tool"):
        raise row.error(f"the prompt must end with a user turn, not {context[-1].role}")
    if not context[-1].content.strip():
        raise row.error("`prompt` ends with an empty turn")
    identifier = str(row.values.get("prompt_id") or exact_digest(context)[:16])
    check_text(row, "prompt_id", identifier)
    chosen, rejected = answers
    return PreferencePair(
        prompt_id=identifier,
        prompt=context,
        chosen=chosen.content,
        rejected=rejected.content,
        chosen_turn=None if chosen.is_plain else chosen,
        rejected_turn=None if rejected.is_plain else rejected,
    )


def _context(row: Row, key: str, prompt: Conversation | None, before: Conversation) -> Conversation:
    """The turns that an answer follows. `before` are the turns before it in its own column: none,
    a continuation of the prompt, or a conversation that holds the prompt."""
    if prompt is None:
        if not before:
            raise row.error(f"there is no `prompt`, and `{key}` has no turn before its answer")
        return before
    if not before or before[0].role == "assistant":
        return prompt + before
    start = before[1:] if before[0].role == "system" != prompt[0].role else before
    holds = before[-len(prompt) :] == prompt or start[: len(prompt)] == prompt
    if holds or before[-1].content == prompt[-1].content:
        return before
    raise row.error(f"`{key}` does not hold the row's prompt")
