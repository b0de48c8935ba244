"""A synthetic UltraFeedback-binarized with its columns, splits and lengths, and with known faults.

Texts are words drawn from a vocabulary. Lengths are drawn from the rows of a file, or are
log-normal and fitted to known figures of UltraFeedback-binarized: prompt and chosen answer together
have a median of 409 tokens, and prompts are 0.42 times as long as answers. The spreads, and the
correlation between the lengths of a prompt's two answers, are assumptions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpo_dist.data.rows import write_parquet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In tokens. Prompts vary more than answers: some are one line, others several pages.
PROMPT_MEDIAN, PROMPT_SPREAD = 89, 1.0
ANSWER_MEDIAN, ANSWER_SPREAD = 273, 0.7
AGREEMENT = 0.8  # correlation of the logarithms of the lengths of a prompt's two answers
SHORTEST = 8  # words; a shorter prompt has no 8-gram for the detection of duplicates

TEST_PAIRS = 2_000
FAULTS = ("identical", "empty", "control_token", "duplicate", "contradiction", "evaluation_overlap")
FAULT_SHARE = 0.005
BATCH = 1_000

Lengths = NDArray[np.int64]  # (pairs, 3): tokens of the prompt and of the two answers
Measure = Callable[[int, np.random.Generator], Lengths]  # draws the lengths of that many pairs


def log_normal_lengths(pairs: int, draw: np.random.Generator) -> Lengths:
    """(pairs, 3) lengths in tokens, from the constants above."""
    prompt, chosen, other = draw.standard_normal((3, pairs))
    rejected = AGREEMENT * chosen + np.sqrt(1 - AGREEMENT**2) * other
    logarithms = np.stack(
        [
            np.log(PROMPT_MEDIAN) + PROMPT_SPREAD * prompt,
            np.log(ANSWER_MEDIAN) + ANSWER_SPREAD * chosen,
            np.log(ANSWER_MEDIAN) + ANSWER_SPREAD * rejected,
        ],
        axis=1,
    )
    lengths: Lengths = np.maximum(np.exp(logarithms).round().astype(np.int64), (SHORTEST, 2, 2))
    return lengths


def lengths_of(rows: Path, tokenizer: PreTrainedTokenizerBase) -> Measure:
    """A function that draws from the lengths of a file's rows (.jsonl, the dataset's columns)."""
    texts = [
        (row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        for row in map(json.loads, rows.open(encoding="utf-8"))
    ]
    counted = [
        [len(ids) for ids in tokenizer(list(column), add_special_tokens=False)["input_ids"]]
        for column in zip(*texts, strict=True)
    ]
    known: Lengths = np.maximum(np.array(counted).T, (SHORTEST, 2, 2))
    return lambda pairs, draw: known[draw.integers(len(known), size=pairs)]


def make_dataset(
    folder: Path,
    vocabulary: Sequence[str],
    pairs: int,
    *,
    held_out: int,
    measure: Measure = log_normal_lengths,
    seed: int = 0,
) -> Counter[str]:
    """Write the splits `train_prefs` and `test_prefs`; returns the expected drops by reason.

    `FAULT_SHARE` of the training rows have each fault. The faults `evaluation_overlap` overlap with
    the first `held_out` rows of `test_prefs`, which are also dropped from the validation set.
    """
    draw = np.random.default_rng(seed)
    words = Words(vocabulary, draw)
    test = list(_rows("test", words, measure(TEST_PAIRS, draw)))
    write_parquet(folder / "data" / "test_prefs-00000-of-00001.parquet", test)
    faults = round(FAULT_SHARE * pairs)
    clean = pairs - len(FAULTS) * faults
    rows = _with_faults(_rows("train", words, measure(clean, draw)), test[:held_out], faults)
    write_parquet(folder / "data" / "train_prefs-00000-of-00001.parquet", rows)
    expected = Counter(dict.fromkeys(FAULTS, faults))
    return expected + Counter(contradiction=faults, evaluation_overlap=held_out)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that are a single token after a space."""
    start = tokenizer.tokenize(" a")[0].removesuffix("a")  # how a token begins with a space
    inside = (t.removeprefix(start) for t in tokenizer.get_vocab() if t.startswith(start))
    return sorted(w for w in inside if len(w) > 1 and w.isascii() and w.isalpha() and w.islower())


class Words:
    """Makes texts from the words of a vocabulary, with different frequencies."""

    def __init__(self, vocabulary: Sequence[str], draw: np.random.Generator) -> None:
        self._words = np.array(vocabulary)
        self._draw = draw

    def texts(self, lengths: Sequence[int]) -> list[str]:
        """A text of each length."""
        uneven = self._draw.random(sum(lengths)) ** 5  # Zipf's law, with the exponent 0.8
        words = self._words[(uneven * len(self._words)).astype(np.int64)].tolist()
        ends = np.cumsum(lengths).tolist()
        return [
            " ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)
        ]


def _rows(split: str, words: Words, lengths: Lengths) -> Iterator[dict[str, Any]]:
    for start in range(0, len(lengths), BATCH):
        batch = lengths[start : start + BATCH]
        texts = words.texts(batch.ravel().tolist())
        for number in range(len(batch)):
            yield _row(f"{split}-{start + number}", *texts[3 * number : 3 * number + 3])


def _row(name: str, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    asked = {"content": prompt, "role": "user"}
    first, second = (
        [asked, {"content": answer, "role": "assistant"}] for answer in (chosen, rejected)
    )
    return {
        "prompt": prompt,
        "prompt_id": name,
        "chosen": first,
        "rejected": second,
        "messages": first,
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }


def _with_faults(
    rows: Iterator[dict[str, Any]], held_out: Sequence[dict[str, Any]], faults: int
) -> Iterator[dict[str, Any]]:
    """The rows; each faulty row follows the row that it was made from, among the first rows."""
    for number in range(faults):
        for fault in FAULTS:
            row = next(rows)
            prompt, chosen = row["prompt"], row["chosen"][-1]["content"]
            rejected = row["rejected"][-1]["content"]
            yield row
            match fault:
                case "identical":
                    yield _row(f"{fault}-{number}", prompt, rejected, rejected)
                case "empty":
                    yield _row(f"{fault}-{number}", prompt, chosen, " ")
                case "control_token":
                    yield _row(f"{fault}-{number}", prompt, chosen, f"{rejected} <|im_end|>")
                case "duplicate":
                    yield row
                case "contradiction":
                    yield _row(f"{fault}-{number}", prompt, rejected, chosen)
                case "evaluation_overlap":
                    asked = held_out[number % len(held_out)]["prompt"].upper()
                    yield _row(f"{fault}-{number}", f"{asked}  please", chosen, rejected)
    yield from rows
