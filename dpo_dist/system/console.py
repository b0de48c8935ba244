"""What the user sees: messages on stderr from rank 0 only, progress bars, no secrets."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from dpo_dist.errors import NotConfirmed
from dpo_dist.system import keys, ranks


class Advance(Protocol):
    """Moves a progress bar by `n`; `note` is shown behind it."""

    def __call__(self, n: int, note: str = "") -> None: ...


_SECRETS = re.compile(r"sk-ant-[\w-]+|hf_[A-Za-z0-9]{16,}|(?<=Bearer )[\w.\-]{8,}")
_SECRET_VARIABLES = set(keys.USUAL)


def hide(variable: str) -> None:
    """Let `scrub` replace this environment variable's value, too: the run file names it."""
    _SECRET_VARIABLES.add(variable)


def scrub(text: str) -> str:
    """Replace API keys and tokens, by their shape and by the environment's own values."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, f"<{name}>")
    return _SECRETS.sub("<secret>", text)


def say(message: str) -> None:
    """Print a message for the user on stderr; ranks other than 0 stay silent."""
    if ranks.is_main():
        print(scrub(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """`say`, marked as a warning."""
    say(f"warning: {message}")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words: "1 pair", "2 pairs", "2 processes"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


TERMINAL = "DPO_DIST_TERMINAL"  # what this process writes is shown on a terminal as it comes
# Set for a process that does a part of another command, which tells the user how to go on.
INNER = "DPO_DIST_INNER"
YES = "DPO_DIST_YES"  # set by `--yes`, and by whoever runs phases without a terminal


def confirm(message: str) -> None:
    """Say what is about to be spent, and go on only when the user agrees.

    Raises `NotConfirmed` for any other answer, and where there is nobody to ask.
    """
    say(message)
    if os.environ.get(YES):
        return
    if not sys.stdin.isatty():
        raise NotConfirmed("cannot ask for confirmation without a terminal: pass --yes to proceed")
    print("Proceed? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise NotConfirmed("cancelled; no request was sent")


def quiet_libraries() -> None:
    """Keep the libraries' own chatter below warnings, so that ours can be read."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A progress bar with an estimate of the time left; yields `advance(n)`.

    `done` is what an earlier, interrupted run had finished. Without a terminal
    the bar is printed every 15 seconds, so that log files stay readable.
    """
    if not ranks.is_main():
        yield lambda n, note="": None
        return
    from tqdm import tqdm  # deferred: keeps `--help` fast

    interval = 0.5 if sys.stderr.isatty() or os.environ.get(TERMINAL) else 15.0
    with tqdm(
        total=total,
        initial=done,
        desc=name,
        mininterval=interval,
        file=sys.stderr,
        bar_format="{desc}: {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} [{elapsed} elapsed, "
        "{remaining} remaining{postfix}]",
    ) as bar:

        def advance(n: int, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)

        yield advance
