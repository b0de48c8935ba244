"""Trainings of a tiny model: their run file, their commands, and what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from dpo_dist.cli import main
from tests.conftest import ROOT

STEPS = 6  # of an epoch
GLOBAL_BATCH = 4
EPOCHS = 3  # of a training that is to be interrupted
ACCELERATE_CONFIGS = ROOT / "accelerate_configs"


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"question {n} " + "word " * (n % 5),
            "chosen": f"a good answer {n * 7 % 11} " + "very " * (n % 3),
            "rejected": f"bad {n * 5 % 13}",
        }
        for n in range(count)
    ]


VALIDATION = rows(40)[-4:]


def write_training(folder: Path, model: Path, **settings: object) -> Path:
    """Write pairs and a run file that trains on them; `settings` are those of `train`."""
    for name, pairs in (("train", rows(STEPS * GLOBAL_BATCH)), ("validation", VALIDATION)):
        lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    sections = {
        "run": {"name": "test", "output_dir": str(folder / "runs")},
        "model": {"base": str(model), "dtype": "float32"},
        "preferences": {
            "source": "path",
            "path": "train.jsonl",
            "validation": {"path": "validation.jsonl"},
        },
        "train": {
            "learning_rate": 5e-3,
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_size": 1,
            "max_length": 256,
            "bf16": False,
            "eval_per_epoch": 2,
            "save_steps": 2,
            "kl": {"prompts": 4, "max_new_tokens": 8, "max_share": 100},
            "accelerate_config": str(ACCELERATE_CONFIGS / "cpu.yaml"),
            **settings,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def shipped(name: str) -> str:
    """The setting of an accelerate configuration that is shipped."""
    return f"train.accelerate_config={ACCELERATE_CONFIGS / name}.yaml"


def variant(folder: Path, name: str, **changes: object) -> str:
    """The setting of a shipped accelerate configuration with changes; None removes a key."""
    values = yaml.safe_load((ACCELERATE_CONFIGS / f"{name}.yaml").read_text()) | changes
    path = folder / f"{name}-{'-'.join(changes)}.yaml"
    path.write_text(yaml.safe_dump({key: v for key, v in values.items() if v is not None}))
    return f"train.accelerate_config={path}"


def command(run_file: Path, *overrides: str, name: str = "train") -> list[str]:
    words = [sys.executable, "-m", "dpo_dist", name, str(run_file)]
    return words + [word for override in overrides for word in ("--set", override)]


def train(run_file: Path, *overrides: str) -> int:
    """Train in processes that this one starts; the exit code."""
    return main(command(run_file, *overrides)[3:])


def stop(
    words: list[str], folder: Path, number: int, *, group: bool = False, after: int = 0
) -> int:
    """Run a command, send it (or its process group) a signal as soon as a complete checkpoint of
    `folder` is later than the step `after`, and return its exit code."""
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 240
    while saved(folder) <= after:
        assert process.poll() is None, "training ended before that checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, number)
    return process.wait(timeout=120)


def await_checkpoint(folder: Path, processes: list[subprocess.Popen[bytes]], after: int) -> int:
    """Wait for a complete checkpoint of a later step than `after`; its step."""
    deadline = time.monotonic() + 240
    while saved(folder) <= after:
        assert all(process.poll() is None for process in processes), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return saved(folder)


def saved(folder: Path) -> int:
    """The step of the newest complete checkpoint, or 0."""
    complete = folder.glob("checkpoints/checkpoint-*/COMPLETE")
    return max((int(path.parent.name.removeprefix("checkpoint-")) for path in complete), default=0)


def newest(folder: Path) -> Path:
    """The newest checkpoint, complete or not."""
    found = folder.glob("checkpoints/checkpoint-*")
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]
