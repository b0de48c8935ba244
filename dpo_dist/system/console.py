"""Console output: messages on stderr from rank 0 only, progress, secrets replaced. On a terminal,
progress is a bar; elsewhere it is lines with the time. A run's log gets both with the time."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dpo_dist.errors import DpoDistError, NotConfirmed, Preempted
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
    """Print a message for the user on stderr, unless `--quiet` is given; ranks other than 0 stay
    silent."""
    if ranks.is_main():
        _print(message, show=not os.environ.get(QUIET))


def warn(message: str) -> None:
    """Print a warning for the user on stderr, even with `--quiet`."""
    if ranks.is_main():
        _print(f"warning: {message}", show=True)


def show_error(message: str) -> None:
    """Print why a command failed, on all ranks."""
    show_end(f"error: {message}")


def show_end(message: str) -> None:
    """Print why a command ends on stderr, always and without the time."""
    print(scrub(message), file=sys.stderr, flush=True)
    record(message)


def show_result(text: str) -> None:
    """Print the result of a command on stdout."""
    print(text)
    record(text.strip())


def record(text: str) -> None:
    """Append a text with the time to the run's log, if one is kept."""
    if path := os.environ.get(LOG):
        # One write, so that lines of several processes do not mix.
        with suppress(OSError), open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"{_now()} {scrub(text)}\n")


@contextmanager
def keep_log(path: Path) -> Iterator[None]:
    """Let this process and its children also write what they print to a file, and this process the
    error that ends the work. The directory is made by `start_log`, once work begins."""
    before = os.environ.get(LOG)
    os.environ[LOG] = str(path.resolve())
    try:
        yield
    except DpoDistError as error:
        record(str(error) if isinstance(error, Preempted) else f"error: {error}")
        raise
    except KeyboardInterrupt:
        record("interrupted")
        raise
    except Exception:
        record(traceback.format_exc().strip())
        raise
    finally:
        os.environ.pop(LOG)
        if before is not None:
            os.environ[LOG] = before


def start_log(text: str) -> None:
    """Append a text to the run's log, if one is kept, and make its directory if necessary."""
    if path := os.environ.get(LOG):
        with suppress(OSError):  # a phase says what is wrong with the directory
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        record(text)


def _print(message: str, *, show: bool) -> None:
    text = scrub(message)
    if show:
        line = text if _on_terminal() else f"{_now()} {text}"
        print(line, file=sys.stderr, flush=True)
    record(text)


def _on_terminal() -> bool:
    return sys.stderr.isatty() or bool(os.environ.get(TERMINAL))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 pair", "2 pairs", "2 processes"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


TERMINAL = "DPO_DIST_TERMINAL"  # the parent process shows this process's output on a terminal
INNER = "DPO_DIST_INNER"  # the parent process prints the user's command
QUIET = "DPO_DIST_QUIET"  # only warnings, errors and results are printed; set by `--quiet`
LOG = "DPO_DIST_LOG"  # the run's log, which also gets what this process prints
YES = "DPO_DIST_YES"  # costs are approved; set by `--yes` and for phases without a terminal


def confirm(message: str) -> None:
    """Print the expected cost and ask the user to approve it. Raises `NotConfirmed` if the user
    does not approve, or if there is no terminal to ask on."""
    approved = bool(os.environ.get(YES))
    _print(message, show=not (approved and os.environ.get(QUIET)))
    if approved:
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
    """Show how far the work is, with the estimated time left; yields `advance(n)`. `done` is the
    part that an earlier, interrupted run finished. On a terminal this is a bar; elsewhere, and in
    the run's log, it is a line now and then."""
    if not ranks.is_main():
        yield lambda n, note="": None
        return
    bar = not os.environ.get(QUIET) and _on_terminal()
    with ExitStack() as stack:
        shown: list[Advance] = [stack.enter_context(_bar(name, total, done))] if bar else []
        shown.append(stack.enter_context(_lines(name, total, done, to_log_only=bar)))

        def advance(n: int, note: str = "") -> None:
            for each in shown:
                each(n, note)

        yield advance


@contextmanager
def _bar(name: str, total: int, done: int) -> Iterator[Advance]:
    from tqdm import tqdm  # imported here to keep `--help` fast

    with tqdm(
        total=total,
        initial=done,
        desc=name,
        mininterval=0.5,
        file=sys.stderr,
        bar_format="{desc}: {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} [{elapsed} elapsed, "
        "{remaining} remaining{postfix}]",
    ) as bar:

        def advance(n: int, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)

        yield advance


# Seconds between two lines of progress: at least these, and no more than those if less than a
# tenth of the work was done.
LINE_SECONDS = (10.0, 60.0)


@contextmanager
def _lines(name: str, total: int, done: int, *, to_log_only: bool) -> Iterator[Advance]:
    from tqdm import tqdm

    started = at = time.monotonic()
    now = before = done
    noted = ""

    def write() -> None:
        text = tqdm.format_meter(
            now,
            total,
            time.monotonic() - started,
            prefix=name,
            initial=done,
            postfix=noted,
            bar_format="{desc}: {percentage:.0f} % ({n_fmt}/{total_fmt}), {elapsed} elapsed, "
            "{remaining} remaining{postfix}",
        )
        if to_log_only:
            record(text)
        else:
            _print(text, show=not os.environ.get(QUIET))

    def advance(n: int, note: str = "") -> None:
        nonlocal now, noted, at, before
        now, noted = now + n, note or noted
        seconds = time.monotonic() - at
        least, most = LINE_SECONDS
        if seconds >= most or (seconds >= least and now - before >= total / 10):
            write()
            at, before = time.monotonic(), now

    try:
        yield advance
    finally:
        if now != before:
            write()
