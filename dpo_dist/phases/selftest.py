"""`dpo-dist judge --selftest`: planted judges go the whole way from candidates to pairs.

What each of them prefers is known, so that every `chosen` can be compared with what it has to be,
text by text. Nothing is asked of anybody: it takes no key, no network and a few seconds.
"""

from __future__ import annotations

import io
import random
import re
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import Canaries, CanaryKind, Config, DataSource
from dpo_dist.data.preferences import JUDGED_FILE
from dpo_dist.data.rows import read_rows
from dpo_dist.errors import DpoDistError, UserError
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.judging.planted import (
    Decision,
    PlantedJudge,
    always,
    obeys,
    prefers_good,
    prefers_length,
)
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.judge import label
from dpo_dist.runs.directories import phase_dir
from dpo_dist.storage.artifacts import phase_directory, read_records, write_records
from dpo_dist.storage.records import Ballot, Candidate, Message, Prompt
from dpo_dist.system.console import counted

PROMPTS = 40
ALIKE = 5  # a prompt all of whose candidates are the same
CUT_OFF = (7, 1)  # a prompt, and the slot whose candidate is not whole
SYLLABLES = ("ba", "do", "ke", "li", "mu", "ra", "so", "tu")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]

Texts = tuple[str, str]  # (chosen, rejected)


@dataclass(frozen=True)
class Trial:
    """A planted judge, and whether it has to get `pairs`, all of them GOOD, or none at all.

    `caught_by` are the kinds of canaries that have to fail it. With a `patience` it fails after
    as many groups of ballots, and another of its name goes on.
    """

    name: str
    decide: Decision
    pairs: bool = False
    caught_by: tuple[CanaryKind, ...] = ()
    patience: int | None = None


TRIALS = (
    Trial("prefers GOOD", prefers_good, pairs=True),
    Trial("prefers GOOD, interrupted midway and resumed", prefers_good, pairs=True, patience=9),
    Trial("always prefers the first answer", always("first")),
    Trial("always says tie", always("tie")),
    Trial("always refuses", always("refusal")),
    Trial("obeys instructions in an answer", obeys, caught_by=("injection",)),
    Trial("prefers the longer answer", prefers_length, caught_by=("padded",)),
)


def selftest(config: Config) -> int:
    """Run all trials with the run file's seed and orders, say how they went on stdout, and return
    the exit code."""
    if config.judge is None:
        raise UserError("the run file does not configure the phase `judge`")
    with tempfile.TemporaryDirectory(prefix="dpo-dist-selftest-") as folder:
        problems = [
            _report(trial, _run(trial, _settings(config, Path(folder), f"trial-{number}")))
            for number, trial in enumerate(TRIALS)
        ]
    right = problems.count("")
    print(f"selftest: {right} of {len(TRIALS)} simulated judges had the expected result")
    return int(right < len(TRIALS))


def _report(trial: Trial, problem: str) -> str:
    found = "all pairs are right" if trial.pairs else "no pair"
    if trial.caught_by:
        found += f"; failed canaries: {', '.join(trial.caught_by)}"
    print(f"{'FAILED' if problem else 'ok':<6} {trial.name}: {problem or found}")
    return problem


def _settings(config: Config, folder: Path, name: str) -> Config:
    """The run file's, but in a folder of their own, with the default canaries, and so that every
    pair that is decided is kept and no other."""
    assert config.judge is not None
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"output_dir": folder, "name": name}),
            "judge": config.judge.model_copy(
                update={"canaries": Canaries(), "balance": None, "inconsistent": "drop"}
            ),
            "rounds": None,
        }
    )


def _run(trial: Trial, config: Config) -> str:
    """What is wrong with a trial's outcome; empty where nothing is."""
    planted = write_candidates(config)
    with redirect_stderr(io.StringIO()):  # what the phase says would hide what is said here
        error = _label(trial, config, trial.patience)
        if trial.patience is not None:
            assert error is not None, "there is more to ask than a group at a time"
            error = _label(trial, config, None)
    pairs = _pairs(config)
    if not trial.pairs:
        return _not_stopped(trial, pairs, error)
    if error is not None:
        return f"it was stopped: {error}"
    assert config.judge is not None
    every = config.judge.pairs == "all"
    expected = {name: len(right) if every else 1 for name, right in planted.items()}
    written = sum(map(len, pairs.values()))
    if written != sum(expected.values()):
        return f"{counted(written, 'pair')} instead of {sum(expected.values())}"
    wrong = [
        name
        for name, right in planted.items()
        if len(right.intersection(pairs.get(name, ()))) != expected[name]
    ]
    if wrong:
        return f"{len(wrong)} of {len(planted)} prompts have wrong pairs, such as {wrong[0]}"
    keys = [ballot.key for ballot in read_records(phase_dir(config, "judge") / BALLOTS, Ballot)]
    return "" if len(keys) == len(set(keys)) else "a question was asked twice"


def _not_stopped(trial: Trial, pairs: dict[str, list[Texts]], error: DpoDistError | None) -> str:
    if pairs or error is None:
        return f"was accepted with {counted(sum(map(len, pairs.values())), 'pair')}"
    missed = [kind for kind in trial.caught_by if not re.search(rf"\b{kind} 0 of \d", str(error))]
    return f"not caught by {', '.join(missed)}: {error}" if missed else ""


def _label(trial: Trial, config: Config, patience: int | None) -> DpoDistError | None:
    """Label as the phase does; its error, if it ends in one."""
    judge = PlantedJudge(trial.name, trial.decide, seed=config.run.seed, patience=patience)
    with phase_directory(phase_dir(config, "judge"), {}) as out:
        try:
            label(judge, Ledger(), config, out)
        except DpoDistError as error:
            return error
    return None


def write_candidates(config: Config) -> dict[str, set[Texts]]:
    """Write a sample phase's files; returns the pairs that a judge of GOOD has to decide, by
    prompt id."""
    slots = len(config.sample.slots) if config.sample else 2
    draw = random.Random(config.run.seed)
    topics = draw.sample([f"{a} {b}" for a in WORDS for b in WORDS if a != b], PROMPTS)
    prompts, candidates, planted = [], [], {}
    for number, topic in enumerate(topics):
        question = f"{_words(draw, 12, 12)} {topic}"
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=question),))
        words = ["GOOD", "bad", *draw.choices(("GOOD", "bad"), k=slots - 2)]
        texts = [f"{_words(draw, 3, 30)} {topic} {word} {_words(draw, 3, 30)}" for word in words]
        texts = [texts[0]] * slots if number == ALIKE else draw.sample(texts, slots)
        whole = [text for slot, text in enumerate(texts) if (number, slot) != CUT_OFF]
        if right := {(a, b) for a in whole for b in whole if "GOOD" in a and "GOOD" not in b}:
            planted[prompt.id] = right
        prompts.append(prompt)
        candidates += [
            Candidate(
                prompt_id=prompt.id,
                slot=slot,
                text=text,
                token_ids=(),
                finish_reason="length" if (number, slot) == CUT_OFF else "stop",
                settings={},
                engine="planted",
            )
            for slot, text in enumerate(texts)
        ]
    write_records(phase_dir(config, "sample") / "prompts.jsonl", prompts)
    write_records(phase_dir(config, "sample") / "candidates.jsonl", candidates)
    return planted


def _words(draw: random.Random, fewest: int, most: int) -> str:
    return " ".join(draw.sample(WORDS, draw.randint(fewest, most)))


def _pairs(config: Config) -> dict[str, list[Texts]]:
    """Every pair that was written, by prompt id."""
    path = phase_dir(config, "judge") / JUDGED_FILE
    if not path.exists():
        return {}
    pairs: dict[str, list[Texts]] = {}
    for row in read_rows(DataSource(path=path)):
        chosen, rejected = (row.values[key][-1]["content"] for key in ("chosen", "rejected"))
        pairs.setdefault(row.values["prompt_id"], []).append((chosen, rejected))
    return pairs
