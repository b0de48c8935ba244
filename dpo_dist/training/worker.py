"""A rank of a training: a process of `python -m dpo_dist train` (or `sft`) that `accelerate launch`
or torchrun has started, for the user or for `dpo-dist train`. Rank 0 runs the phase, and the other
ranks join its trainings.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from dpo_dist.data.models import check_unquantized
from dpo_dist.errors import INTERRUPTED, ConfigError, DpoDistError, PhaseFailed, Preempted
from dpo_dist.storage.artifacts import write_text
from dpo_dist.system import ranks
from dpo_dist.system.console import say
from dpo_dist.system.processes import die_with_parent, handling_sigterm
from dpo_dist.tracking import start as start_tracking
from dpo_dist.training.job import PREEMPTED, TrainingJob
from dpo_dist.training.logs import (
    also_in,
    any_failed,
    explain,
    given_attempt,
    new_attempt,
    rank_log,
    record,
    redirect_output,
    stop_file,
)
from dpo_dist.training.peers import Peers
from dpo_dist.training.process import prepare, shield_loaders, take_device
from dpo_dist.training.supervise import resume

CHECK_SECONDS = 0.1  # a step may be short
# Less than the 30 s that torch's launcher waits after SIGTERM.
GRACE_SECONDS = 15.0

_peers: Peers | None = None  # of rank 0: a process has one launcher
_ended = Event()  # the phase has: when some ranks exit, their launcher sends SIGTERM to the others


def start() -> None:
    """Prepare this process: the first thing that a rank does."""
    # A SIGTERM during the imports would end this process and, with it, all the others.
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    attempt = given_attempt()
    # A user's launcher of one process ends on SIGTERM without passing it on: training then saves.
    die_with_parent(signal.SIGKILL if attempt else signal.SIGTERM)
    if attempt:
        redirect_output(rank_log(attempt, ranks.rank()))
    elif not ranks.speaks():
        redirect_output(Path(os.devnull))
    faulthandler.enable()
    prepare()


@contextmanager
def leading() -> Iterator[None]:
    """Run a phase in rank 0. Its exit code becomes that of the other ranks."""
    global _peers
    _ended.clear()
    _peers = Peers.connect()
    status = 1
    try:
        with handling_sigterm(_stop), _told_to_stop():
            yield
        status = 0
    except DpoDistError as error:
        status = error.exit_code
        raise
    except KeyboardInterrupt:
        status = INTERRUPTED
        raise
    finally:
        _ended.set()
        _peers.end(status)


def launch(job: TrainingJob) -> None:
    """Train, from the last checkpoint if there is one, together with the other ranks. Raises
    `PhaseFailed` with the first error if a rank fails, and `Preempted` after SIGTERM to any."""
    assert _peers is not None
    check_unquantized(job.model)
    given = given_attempt()
    if not given:  # else `dpo-dist train` has done it
        (job.out / PREEMPTED).unlink(missing_ok=True)
    job = resume(job).model_copy(update={"logs": given or new_attempt(job.out / "logs")})
    assert job.logs is not None
    write_text(job.out / "job.json", job.model_dump_json(indent=2) + "\n")
    _peers.announce(job)
    try:
        # `dpo-dist train` watches the logs. Under a user's launcher, nobody else does.
        with (
            nullcontext() if given else also_in(rank_log(job.logs, 0)),
            nullcontext() if given else _giving_up(job.logs),
        ):
            _train(job)
    except Preempted:
        raise
    except Exception as error:
        record(job.logs, 0, error)
        if not isinstance(error, DpoDistError):
            traceback.print_exc()
        raise PhaseFailed(explain(job.logs, 1)) from error
    if (job.out / PREEMPTED).exists():
        step = (job.out / PREEMPTED).read_text(encoding="utf-8").strip()
        raise Preempted(f"training was stopped after step {step}, which is saved")


def join() -> int:
    """In a rank other than 0: join the trainings that rank 0 starts; returns its exit code."""
    peers = Peers.connect()
    try:
        while not isinstance(job := peers.wait(), int):
            _enter(job)
            peers.ready()
            try:
                _train(job)
            except Preempted:
                raise
            except Exception as error:
                assert job.logs is not None
                record(job.logs, ranks.rank(), error)
                traceback.print_exc()
                raise PhaseFailed(str(error)) from error
        _ended.set()
        peers.go()
        return job
    except DpoDistError as error:
        _ended.set()
        peers.leave(error.exit_code, str(error))
        raise


def _stop() -> None:
    if not _ended.is_set():
        raise Preempted("stopped while no training was running")


def _enter(job: TrainingJob) -> None:
    assert job.logs is not None
    if not job.logs.is_dir():
        raise ConfigError(
            f"{job.logs} is not there on {socket.gethostname()}: all machines need the run "
            "directory at the same path"
        )
    if not given_attempt():
        redirect_output(rank_log(job.logs, ranks.rank()))


def _train(job: TrainingJob) -> None:
    """Train in this process. SIGTERM lets all ranks save and stop."""
    take_device()
    shield_loaders()

    import transformers

    from dpo_dist.training.trainer import train

    transformers.utils.logging.disable_progress_bar()
    preempted = Event()
    with handling_sigterm(preempted.set):
        if job.wandb is not None and ranks.is_main():
            start_tracking(job.wandb)  # the trainer's callback uses the W&B run that is active
        try:
            train(job, preempted)
        finally:
            _release()
    if preempted.is_set() and job.kind == "reference":  # this pass cannot be stopped
        raise Preempted(
            "training was stopped before its first step; its reference log-probs are computed"
        )


def _release() -> None:
    """Free what the training held, and what would change how the next model is loaded: the pass for
    the reference precedes a training, and a merge loads the base model."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Send this process SIGTERM when the file STOP appears: `accelerate launch` does not pass on
    the signal that `dpo-dist train` has received."""
    attempt = given_attempt()
    if attempt is None:  # only `dpo-dist train` writes the file
        yield
        return
    stop = stop_file(attempt)

    def watch(over: Event) -> None:
        while not over.wait(CHECK_SECONDS):
            if stop.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    with _watching(watch):
        yield


@contextmanager
def _giving_up(logs: Path) -> Iterator[None]:
    """End this process some time after another rank has failed. A collective may wait very long for
    that rank, and the launcher would kill this process before it has named the cause."""

    def watch(over: Event) -> None:
        while not over.wait(CHECK_SECONDS):
            if any_failed(logs) and not over.wait(GRACE_SECONDS):
                say(f"error: {explain(logs, 1)}")
                os._exit(1)

    with _watching(watch):
        yield


@contextmanager
def _watching(watch: Callable[[Event], None]) -> Iterator[None]:
    """Run `watch` in a thread until the block is over, which it learns from the event."""
    over = Event()
    thread = Thread(target=watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_process(status: int) -> NoReturn:
    """End the process without finalizing the interpreter. gloo's threads may hold tensors after the
    process group is destroyed, and freeing one during finalization aborts the process."""
    if status == 0 and "torch" in sys.modules:  # after a failure the others may never answer
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for loader in multiprocessing.active_children():
        loader.kill()  # Python would send SIGTERM, which it ignores, and wait for it
    atexit._run_exitfuncs()  # Weights & Biases uploads its last data there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
