"""The entry point of the command line `dpo-dist`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dpo_dist import __version__
from dpo_dist.errors import INTERRUPTED, DpoDistError, Preempted, UserError
from dpo_dist.system import ranks
from dpo_dist.system.processes import die_if_child
from dpo_dist.tools import COMMANDS
from dpo_dist.tools.arguments import EXIT_CODES, add_commands

die_if_child()  # this may be a spawned engine, which imports its parent's main module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    rank = arguments is None and ranks.launched()  # a process of its own
    if rank:
        from dpo_dist.training.worker import start

        start()
    words = sys.argv[1:] if arguments is None else arguments
    status = _run(words, parser().parse_args(words))
    if rank:
        from dpo_dist.training.worker import end_process

        end_process(status)
    return status


def _run(words: Sequence[str], options: argparse.Namespace) -> int:
    from dpo_dist.system.console import QUIET, YES, quiet_libraries, record, show_error
    from dpo_dist.system.machine import has_cuda, wait_passively

    quiet_libraries()
    if not has_cuda():
        wait_passively()  # engines compute on the CPU's threads
    if getattr(options, "yes", False):
        os.environ[YES] = "1"  # inherited by the processes of the phases
    if getattr(options, "quiet", False):
        os.environ[QUIET] = "1"
    try:
        if ranks.launched():
            _check_trains(options.command)
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:
        _show_how_to_continue("interrupted", words, options)
        return INTERRUPTED
    except DpoDistError as error:
        if _is_recorded(error):
            pass
        elif isinstance(error, Preempted):
            _show_how_to_continue(str(error), words, options)
        else:
            show_error(str(error))
        return error.exit_code
    except Exception:
        record(traceback.format_exc())  # Python prints it
        raise


def _check_trains(command: str) -> None:
    """Raise `UserError` if a launcher has started a command that is not a training."""
    from dpo_dist.runs.run import TRAINING

    if command not in TRAINING:
        known = " and ".join(f"`{name}`" for name in TRAINING)
        raise UserError(
            f"`{command}` is not a training: run it without a launcher. `accelerate launch` and "
            f"torchrun can start {known}"
        )


def _is_recorded(error: DpoDistError) -> bool:
    """Record the error of a rank that `dpo-dist` has started: that process prints it."""
    if ranks.LOGS not in os.environ:
        return False
    from dpo_dist.training.logs import record

    record(Path(os.environ[ranks.LOGS]), ranks.rank(), error)
    return True


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The parsed options have the chosen command's `run`."""
    commands = argparse.ArgumentParser(
        prog="dpo-dist",
        description=(
            "Train a DPO-aligned model from an SFT model and prompts, and measure what changed."
        ),
        epilog=EXIT_CODES,
    )
    commands.add_argument("--version", action="version", version=f"dpo-dist {__version__}")
    add_commands(commands, COMMANDS, "command")
    return commands


def _show_how_to_continue(reason: str, words: Sequence[str], options: argparse.Namespace) -> None:
    """Print why the command stopped, and the command that continues. A command that another command
    started prints only the reason: the parent process prints the user's command."""
    from dpo_dist.system.console import INNER, show_end

    if ranks.LOGS in os.environ or not ranks.is_main():
        return
    if os.environ.get(INNER):
        show_end(reason)
        return
    if ranks.launched():
        show_end(f"{reason}. To continue, run the same command again.")
        return
    show_end(
        f"{reason}. To continue, run the same command again:\n  {_command_line(words, options)}"
    )


def _command_line(words: Sequence[str], options: argparse.Namespace) -> str:
    """The command as typed, but without `--force`, which would move the results aside again, and
    with a placeholder for the launch id, which must be new."""
    kept: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if getattr(options, "force", False) and _means(name, "--force"):
            continue
        if getattr(options, "launch_id", None) is not None and _means(name, "--launch-id"):
            kept += ["--launch-id", "..."]
            if not equals:
                next(remaining)
            continue
        kept.append(word)
    return shlex.join(["dpo-dist", *kept])


def _means(word: str, option: str) -> bool:
    """Whether argparse reads a word as this option; it accepts abbreviations."""
    return len(word) > 2 and option.startswith(word)


if __name__ == "__main__":
    raise SystemExit(main())
