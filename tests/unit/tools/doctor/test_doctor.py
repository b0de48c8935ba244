"""The doctor: what will break is found, and nothing secret is shown."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.system import machine
from dpo_dist.system.console import USUAL_KEYS
from dpo_dist.system.ranks import launcher_variables
from dpo_dist.tools.doctor import environment, packages
from dpo_dist.tools.doctor.packages import judge_build
from tests.conftest import ROOT


def test_a_healthy_machine_breaks_nothing(write_run, tiny_model, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/nowhere")
    path = write_run(
        model={"base": str(tiny_model)},
        preferences={"source": "path", "path": "p.jsonl"},
        train={"accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml")},
    )
    assert main(["doctor", str(path)]) == 0
    told = capsys.readouterr().out
    for part in (
        "torch build",
        "/dev/shm",
        "file locks",
        "8 micro-batches per step",
        "0 errors (X)",
    ):
        assert part in told


def test_a_run_file_s_mistakes_are_found(write_run, monkeypatch, capsys) -> None:
    path = write_run(
        model={"base": "absent/deeper/model"},
        preferences={"source": "path", "path": "p.jsonl"},
        train={"accelerate_config": "absent.yaml"},
    )
    assert main(["doctor", str(path)]) == 1
    told = capsys.readouterr().out
    assert "absent/deeper/model: no such model" in told and "absent.yaml: no such file" in told


def test_keys_that_judges_and_servers_lack_are_found(
    write_run, tiny_model, monkeypatch, capsys
) -> None:
    """Claude scores answers only; of two other judges one has its key."""
    monkeypatch.setenv("JUDGE_KEY", "x")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    compatible = {"type": "openai_compatible", "model": "m", "rubric": "r.md"}
    path = write_run(
        model={"base": str(tiny_model)},
        preferences={"source": "path", "path": "p.jsonl"},
        evaluate={
            "prompts": {"path": "p.jsonl"},
            "metrics": [{"type": "length"}],
            "engine": {
                "type": "vllm_server",
                "urls": ["http://gpu:8000"],
                "api_key_variable": "SERVER_KEY",
            },
            "judge": {**compatible, "base_url": "http://a/v1", "api_key_variable": "JUDGE_KEY"},
            "judge_scores": [
                {"judge": {"type": "claude", "model": "m", "rubric": "r.md"}},
                {"label": "b", "judge": {**compatible, "base_url": "http://b/v1"}},
            ],
        },
    )
    assert main(["doctor", str(path)]) == 1
    told = capsys.readouterr().out
    assert (
        "X judge" in told and "The Claude judge needs ANTHROPIC_API_KEY, which is not set" in told
    )
    assert "! judge" in told and "http://b/v1 may need OPENAI_API_KEY, which is not set" in told
    assert "X engine" in told and "The vLLM server needs SERVER_KEY, which is not set" in told
    assert "http://a/v1" not in told


def test_the_driver_is_asked_once(tmp_path: Path, monkeypatch, capsys) -> None:
    said = tmp_path / "said"
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\necho x >> {said}\necho '0, GPU-1, H100, 81559, 80000, 580.82.07'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine._nvidia_smi.cache_clear()
    main(["doctor"])
    machine._nvidia_smi.cache_clear()
    assert "1: H100" in capsys.readouterr().out
    assert said.read_text() == "x\n"


def test_keys_are_said_to_be_there_and_never_shown(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-value")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    text = environment.key_variables(USUAL_KEYS).text
    assert "WANDB_API_KEY set" in text and "HF_TOKEN not set" in text
    assert "a-secret-value" not in text


@pytest.mark.parametrize(
    ("cuda", "driver", "state"),
    [
        (None, None, "ok"),
        ("13.0", None, "ok"),
        ("13.0", "580.82.07", "ok"),
        ("13.0", "570.124.06", "failed"),
        ("12.8", "570.124.06", "ok"),
        (None, "580.82.07", "failed"),
    ],
)
def test_torch_s_build_has_to_fit_the_driver(cuda, driver, state) -> None:
    assert judge_build(cuda, driver).state == state


def test_another_version_than_the_one_that_was_tried_breaks(monkeypatch) -> None:
    monkeypatch.setattr(packages.metadata, "version", lambda name: "1.0+local")
    wanted = [
        *("torch>=1.0,<2", "trl>=1.16,<2", "numpy"),
        *('wandb>=0.31,<1; extra == "wandb"', 'mypy>=2; extra == "dev"'),
    ]
    monkeypatch.setattr(packages.metadata, "requires", lambda _: wanted)
    found = {name: finding.state for name, finding in packages.versions()}
    assert found == {"torch": "ok", "trl": "failed", "wandb": "warning"}


def test_a_torchvision_that_does_not_fit_is_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ((name, finding),) = packages.companions()
    assert (name, finding.state) == ("torchvision", "failed")
    assert "nms does not exist" in finding.text and "pip uninstall torchvision" in finding.advice


def test_a_lock_that_a_killed_compilation_left_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert environment.extension_locks().state == "ok", "somebody compiles right now"
    os.utime(lock, (time.time() - 3600,) * 2)
    found = environment.extension_locks()
    assert found.state == "failed" and str(lock) in found.text


def test_variables_of_another_launcher_are_found(monkeypatch) -> None:
    for name in launcher_variables():  # other tests have trained in this process
        monkeypatch.delenv(name)
    assert environment.launcher_variables().state == "ok"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert environment.launcher_variables().state == "warning"
    monkeypatch.setenv("RANK", "3")
    found = environment.launcher_variables()
    assert found.state == "failed" and "MASTER_ADDR, RANK" in found.text


def test_a_directory_without_a_place_for_sockets_is_found(tmp_path: Path, monkeypatch) -> None:
    long = tmp_path / ("a" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert environment.temporary_folder().state == "failed"
