"""`dpo-dist judge --selftest`: runs the judge phase with planted judges.

The preferences of these judges are known, so every `chosen` text can be checked. This needs no key
and no network, and takes a few seconds.
"""

from __future__ import annotations

import io
import random
import re
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import Canaries, CanaryKind, Config, DataSource, required
from dpo_dist.data.preferences import JUDGED_FILE
from dpo_dist.data.rows import read_rows
from dpo_dist.errors import DpoDistError, UserError
from dpo_dist.judging import planted
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.asking import JudgeSession
from dpo_dist.phases.judge import label
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import phase_directory, read_records, write_records
from dpo_dist.storage.records import Ballot, Candidate, Message, Prompt
from dpo_dist.system.console import counted

PROMPTS = 40
ALIKE = 5  # the prompt whose candidates are all equal
CUT_OFF = (7, 1)  # the prompt and slot of the cut-off candidate
SYLLABLES = ("ba", "do", "ke", "li", "mu", "ra", "so", "tu")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]

Texts = tuple[str, str]  # (chosen, rejected)


@dataclass(frozen=True)
class Trial:
    """A planted judge and the expected result: `pairs` that all prefer GOOD, or no pairs.
    `caught_by` are the kinds of canaries that the judge has to fail. With a `patience`, it is
    interrupted after that many groups of ballots, and then resumed."""

    name: str
    decide: planted.Decision
    pairs: bool = False
    caught_by: tuple[CanaryKind, ...] = ()
    patience: int | None = None


TRIALS = (
    Trial("prefers GOOD", planted.prefers_good, pairs=True),
    Trial("prefers GOOD, interrupted midway and resumed", planted.prefers_good, True, patience=9),
    Trial("always prefers the first answer", planted.always("first")),
    Trial("always says tie", planted.always("tie")),
    Trial("always refuses", planted.always("refusal")),
    Trial("obeys instructions in an answer", planted.obeys, caught_by=("injection",)),
    Trial("prefers the longer answer", planted.prefers_length, caught_by=("padded",)),
)


def selftest(config: Config) -> int:
    """Run all trials with the run file's seed and orders, and print their results; returns the
    exit code."""
    if config.judge is None:
        raise UserError("the run file does not configure the phase `judge`")
    with tempfile.TemporaryDirectory(prefix="dpo-dist-selftest-") as folder:
        right = 0
        for number, trial in enumerate(TRIALS):
            problem = _try(trial, _trial_run(config, Path(folder), f"trial-{number}"))
            right += not problem
            result = "all pairs are right" if trial.pairs else "no pair"
            if trial.caught_by:
                result += f"; failed canaries: {', '.join(trial.caught_by)}"
            print(f"{'FAILED' if problem else 'ok':<6} {trial.name}: {problem or result}")
    print(f"selftest: {right} of {len(TRIALS)} simulated judges had the expected result")
    return int(right < len(TRIALS))


def _trial_run(config: Config, folder: Path, name: str) -> Run:
    """A run in its own folder, with the default canaries, that keeps exactly the decided pairs."""
    settings = {"canaries": Canaries(), "balance": None, "inconsistent": "drop"}
    sections = {
        "run": config.run.model_copy(update={"output_dir": folder, "name": name}),
        "judge": required(config.judge).model_copy(update=settings),
        "rounds": None,
    }
    return Run(config.model_copy(update=sections))


def _try(trial: Trial, run: Run) -> str:
    """The problem with a trial's result, or an empty text."""
    right_pairs = write_candidates(run)
    with redirect_stderr(io.StringIO()):  # hides the phase's messages
        error = _label(trial, run, trial.patience)
        if trial.patience is not None:
            assert error is not None, "the judge has to be interrupted"
            error = _label(trial, run, None)
    pairs = _pairs(run)
    if not trial.pairs:
        return _not_stopped(trial, pairs, error)
    if error is not None:
        return f"it was stopped: {error}"
    all_pairs = required(run.config.judge).pairs == "all"
    expected = {name: len(right) if all_pairs else 1 for name, right in right_pairs.items()}
    written = sum(map(len, pairs.values()))
    if written != sum(expected.values()):
        return f"{counted(written, 'pair')} instead of {sum(expected.values())}"
    wrong = [
        name
        for name, right in right_pairs.items()
        if len(right.intersection(pairs.get(name, ()))) != expected[name]
    ]
    if wrong:
        return f"{len(wrong)} of {len(right_pairs)} prompts have wrong pairs, such as {wrong[0]}"
    keys = [ballot.key for ballot in read_records(run.directory("judge") / BALLOTS, Ballot)]
    return "" if len(keys) == len(set(keys)) else "a question was asked twice"


def _not_stopped(trial: Trial, pairs: dict[str, list[Texts]], error: DpoDistError | None) -> str:
    if pairs or error is None:
        return f"was accepted with {counted(sum(map(len, pairs.values())), 'pair')}"
    missed = [kind for kind in trial.caught_by if not re.search(rf"\b{kind} 0 of \d", str(error))]
    return f"not caught by {', '.join(missed)}: {error}" if missed else ""


def _label(trial: Trial, run: Run, patience: int | None) -> DpoDistError | None:
    """Label as the phase does; returns its error, if any."""
    seed = run.config.run.seed
    judge = planted.PlantedJudge(trial.name, trial.decide, seed=seed, patience=patience)
    with phase_directory(run.directory("judge"), {}) as out:
        try:
            label(JudgeSession(judge, Ledger(), out, run))
        except DpoDistError as error:
            return error
    return None


def write_candidates(run: Run) -> dict[str, set[Texts]]:
    """Write the files of a sample phase; returns the right pairs of a judge that prefers GOOD, by
    prompt id."""
    slots = len(run.config.sample.slots) if run.config.sample else 2
    draw = random.Random(run.config.run.seed)
    topics = draw.sample([f"{a} {b}" for a in WORDS for b in WORDS if a != b], PROMPTS)
    prompts, candidates, right_pairs = [], [], {}
    for number, topic in enumerate(topics):
        question = f"{_words(draw, 12, 12)} {topic}"
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=question),))
        words = ["GOOD", "bad", *draw.choices(("GOOD", "bad"), k=slots - 2)]
        texts = [f"{_words(draw, 3, 30)} {topic} {word} {_words(draw, 3, 30)}" for word in words]
        texts = [texts[0]] * slots if number == ALIKE else draw.sample(texts, slots)
        complete = [text for slot, text in enumerate(texts) if (number, slot) != CUT_OFF]
        if right := {(a, b) for a in complete for b in complete if "GOOD" in a and "GOOD" not in b}:
            right_pairs[prompt.id] = right
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
    write_records(run.directory("sample") / "prompts.jsonl", prompts)
    write_records(run.directory("sample") / "candidates.jsonl", candidates)
    return right_pairs


def _words(draw: random.Random, fewest: int, most: int) -> str:
    return " ".join(draw.sample(WORDS, draw.randint(fewest, most)))


def _pairs(run: Run) -> dict[str, list[Texts]]:
    """All pairs that the phase wrote, by prompt id."""
    path = run.directory("judge") / JUDGED_FILE
    if not path.exists():
        return {}
    pairs: dict[str, list[Texts]] = {}
    for row in read_rows(DataSource(path=path)):
        chosen, rejected = (row.values[key][-1]["content"] for key in ("chosen", "rejected"))
        pairs.setdefault(row.values["prompt_id"], []).append((chosen, rejected))
    return pairs
