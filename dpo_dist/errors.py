"""Every error that a user can meet.

    DpoDistError                  exit code 1: the work failed
    ├── PhaseFailed               a phase's process ended with an error
    ├── NodeLost                  a machine of several is gone, or has never come
    ├── TrainingDiverged          the first loss is not ln 2, or a loss is not finite
    ├── Preempted                 exit code 75: SIGTERM; what was done is saved
    ├── EngineFailed              an engine cannot go on (no server is left, or one answers wrongly)
    ├── JudgeFailed               the judge cannot go on (credentials, a spend limit, an open sheet)
    ├── DirectoryLocked           another process owns the phase's directory
    ├── NoFileLocks               the file system cannot keep two processes apart
    ├── UploadFailed              the Hub has not taken what was made for it
    └── UserError                 exit code 2: nothing was done; the input has to change
        ├── ConfigError           run.yaml: what is wrong, at which key
        ├── DataError             a data file: what is wrong, at which file:line
        ├── ModelError            a model, tokenizer or adapter that cannot serve
        ├── PreflightFailed       a machine is not as a training needs it
        ├── NotConfirmed          what it would cost was not agreed to
        ├── FingerprintMismatch   a phase's directory holds the work of other settings
        └── MissingDependency     an optional package; carries the pip command

Messages say what is wrong, where, and what to do about it. `dpo-dist evaluate --gate` fails with
the exit codes 3 and 4 without an error: the work is done, and its outcome is `GATE`'s.
"""


class DpoDistError(Exception):
    """The work failed."""

    exit_code = 1


class PhaseFailed(DpoDistError):
    """A phase's own process ended with an error; its message is already on the console."""


class NodeLost(DpoDistError):
    """One of several machines does not answer, so that the others cannot go on."""


class TrainingDiverged(DpoDistError):
    """Training was stopped by a gate: the first loss, or a loss that is not finite."""


class Preempted(DpoDistError):
    """Training was asked to stop, saved a checkpoint and can go on from it."""

    exit_code = 75


class EngineFailed(DpoDistError):
    """An engine cannot go on; what it has answered is kept."""


class JudgeFailed(DpoDistError):
    """The judge cannot go on; what it has answered is kept."""


class DirectoryLocked(DpoDistError):
    """Another process is at work in the phase's directory."""


class NoFileLocks(DpoDistError):
    """The phase's directory lies on a file system without locks."""


class UploadFailed(DpoDistError):
    """The Hub has not taken the model; the folder that was made for it is kept."""


class UserError(DpoDistError, ValueError):
    """The input or the configuration has to change before any work makes sense."""

    exit_code = 2


class ConfigError(UserError):
    """The run file is wrong; the message names the key."""


class DataError(UserError):
    """A data file is wrong; the message names the file and the line."""


class ModelError(UserError):
    """A model, tokenizer or adapter cannot be used for what was asked."""


class PreflightFailed(UserError):
    """A machine is not fit for the training; the message names it and what is wrong."""


class NotConfirmed(UserError):
    """What the work would cost was not agreed to."""


class FingerprintMismatch(UserError):
    """The phase's directory was made with other settings or inputs."""


class MissingDependency(UserError):
    """An optional package is not installed; any one of the `extras` brings it."""

    def __init__(self, package: str, *extras: str) -> None:
        commands = " or ".join(f"pip install 'dpo_dist[{extra}]'" for extra in extras)
        super().__init__(f"{package} is not installed. Install it with: {commands}")


PREEMPTED = Preempted.exit_code  # sysexits.h: EX_TEMPFAIL, "try again later"
GATE = {"improved": 0, "no_evidence": 3, "regressed": 4}  # `evaluate --gate`, by the outcome
INTERRUPTED = 130  # the shell's convention for a program ended by Ctrl-C (128 + SIGINT)
