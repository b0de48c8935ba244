"""All errors that a user can see.

    DpoDistError                  exit code 1: the work failed
    ├── PhaseFailed               the process of a phase ended with an error
    ├── NodeLost                  a node stopped, or never joined
    ├── TrainingDiverged          the first loss is not ln 2, or a loss is not finite
    ├── Preempted                 exit code 75: SIGTERM; the finished work is saved
    ├── EngineFailed              an engine cannot continue (no server is left, wrong answers)
    ├── JudgeFailed               the judge cannot continue (API key, spend limit, unfinished sheet)
    ├── DirectoryLocked           another process uses the phase's directory
    ├── NoFileLocks               the file system does not support locks
    ├── UploadFailed              the upload to the Hub failed
    └── UserError                 exit code 2: nothing was done; the input must change
        ├── ConfigError           run.yaml is wrong; names the key
        ├── DataError             a data file is wrong; names file and line
        ├── ModelError            a model, tokenizer or adapter cannot be used
        ├── PreflightFailed       a node does not fit the training
        ├── NotConfirmed          the user did not approve the cost
        ├── FingerprintMismatch   a phase's directory was made with other settings
        └── MissingDependency     an optional package is missing; gives the pip command

Messages say what is wrong, where, and what to do. `dpo-dist evaluate --gate` ends without an error,
with the exit code of the outcome in `GATE`.
"""

from __future__ import annotations

import shlex
from importlib import metadata


class DpoDistError(Exception):
    """The work failed."""

    exit_code = 1


class PhaseFailed(DpoDistError):
    """The process of a phase ended with an error; its message is already on the console."""


class NodeLost(DpoDistError):
    """A node does not answer, so that the others cannot continue."""


class TrainingDiverged(DpoDistError):
    """Training was stopped because of the first loss, or because a loss is not finite."""


class Preempted(DpoDistError):
    """Training was asked to stop and saved a checkpoint from which it can resume."""

    exit_code = 75


class EngineFailed(DpoDistError):
    """An engine cannot continue; its finished answers are kept."""


class JudgeFailed(DpoDistError):
    """The judge cannot continue; its finished answers are kept."""


class DirectoryLocked(DpoDistError):
    """Another process uses the phase's directory."""


class NoFileLocks(DpoDistError):
    """The phase's directory is on a file system without locks."""


class UploadFailed(DpoDistError):
    """The upload to the Hub failed; the prepared folder is kept."""


class UserError(DpoDistError, ValueError):
    """The input or the configuration must change; nothing was done."""

    exit_code = 2


class ConfigError(UserError):
    """The run file is wrong; the message names the key."""


class DataError(UserError):
    """A data file is wrong; the message names the file and the line."""


class ModelError(UserError):
    """A model, tokenizer or adapter cannot be used."""


class PreflightFailed(UserError):
    """A node does not fit the training; the message names it and the problem."""


class NotConfirmed(UserError):
    """The user did not approve the cost of the work."""


class FingerprintMismatch(UserError):
    """The phase's directory was made with other settings or inputs."""


class MissingDependency(UserError):
    """An optional package is not installed; each of the `extras` of pyproject.toml installs it. The
    message names packages, since dpo_dist itself may come from an index, a wheel or a checkout."""

    def __init__(self, package: str, *extras: str) -> None:
        commands = " or ".join(f"pip install {_packages(extra) or package}" for extra in extras)
        super().__init__(f"{package} is not installed. Install it with: {commands}")


def _packages(extra: str) -> str:
    """The requirements of an extra, quoted for a shell; empty if dpo_dist is not installed."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires("dpo_dist") or []]
    except metadata.PackageNotFoundError:
        return ""
    found = [r for r in declared if r.marker and r.marker.evaluate({"extra": extra})]
    # Without its condition, `extra == ...`.
    return " ".join(shlex.quote(str(needed).partition(";")[0].strip()) for needed in found)


PREEMPTED = Preempted.exit_code  # sysexits.h: EX_TEMPFAIL, "try again later"
GATE = {"improved": 0, "no_evidence": 3, "regressed": 4}  # of `evaluate --gate`, by outcome
INTERRUPTED = 130  # the shell's convention for a program ended by Ctrl-C (128 + SIGINT)
