"""Console output: messages on stderr from rank 0 only, progress bars, secrets replaced."""

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
from dpo_dist.system import ranks


class Advance(Protocol):
    """Advances a progress bar by `n`; `note` is shown after it."""

    def __call__(self, n: int, note: str = "") -> None: ...


# Environment variables with API keys, under the providers' own names. A run file may name others.
ANTHROPIC_KEY = "ANTHROPIC_API_KEY"
OPENAI_KEY = "OPENAI_API_KEY"
HUB_KEY = "HF_TOKEN"
WANDB_KEY = "WANDB_API_KEY"
USUAL_KEYS = (ANTHROPIC_KEY, OPENAI_KEY, HUB_KEY, WANDB_KEY)

_SECRETS = re.compile(r"sk-ant-[\w-]+|hf_[A-Za-z0-9]{16,}|(?<=Bearer )[\w.\-]{8,}")
_SECRET_VARIABLES = set(USUAL_KEYS)


def hide(variable: str) -> None:
    """Let `scrub` also replace the value of this environment variable, which a run file names."""
    _SECRET_VARIABLES.add(variable)


def scrub(text: str) -> str:
    """Replace API keys and tokens: values of the known environment variables, and known formats."""
    for name in _SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return _SECRETS.sub("<secret>", text)


def say(message: str) -> None:
    """Print a message for the user on stderr; ranks other than 0 stay silent."""
    if ranks.is_main():
        print(scrub(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning for the user, like `say`."""
    say(f"warning: {message}")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 pair", "2 pairs", "2 processes"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


TERMINAL = "DPO_DIST_TERMINAL"  # the parent process shows this process's output on a terminal
INNER = "DPO_DIST_INNER"  # the parent process prints the user's command
YES = "DPO_DIST_YES"  # costs are approved; set by `--yes` and for phases without a terminal


def confirm(message: str) -> None:
    """Print the expected cost and ask the user to approve it. Raises `NotConfirmed` if the user
    does not approve, or if there is no terminal to ask on."""
    say(message)
    if os.environ.get(YES):
        return
    if not sys.stdin.isatty():
        raise NotConfirmed("cannot ask for confirmation without a terminal: pass --yes to proceed")
    print("Proceed? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise NotConfirmed("cancelled; no request was sent")


def quiet_libraries() -> None:
    """Suppress the libraries' progress bars and messages below the level of warnings."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


@contextmanager
def progress(name: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar with the estimated time left; yields `advance(n)`. `done` is the part
    that an earlier, interrupted run finished. Without a terminal, the bar is printed every 15
    seconds, so that log files stay readable."""
    if not ranks.is_main():
        yield lambda n, note="": None
        return
    from tqdm import tqdm  # imported here to keep `--help` fast

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
