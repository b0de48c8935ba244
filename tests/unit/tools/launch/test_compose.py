"""compose.yaml: what its services start, from where, and with what rights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.runs.run import Run
from dpo_dist.tools.launch.compose import Compose
from dpo_dist.tools.launch.layout import Layout
from tests.conftest import ROOT

RUN_FILE = Path("recipes/incident_triage/run.yaml")
TARGET = Compose(image="dpo-dist:0.1.0", cpu_image="dpo-dist:0.1.0-cpu")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(ROOT)
    overrides = ("train.beta=0.3",)
    run = Run(load_config(RUN_FILE, overrides))
    return TARGET.files(Layout(RUN_FILE, run, overrides, workdir=Path("/workspace")))


@pytest.fixture
def project(files: dict[str, str]) -> dict:
    return yaml.safe_load(files["compose.yaml"])


def test_a_service_for_the_gpus_and_one_without(project: dict) -> None:
    services = project["services"]
    assert {name: service["image"] for name, service in services.items()} == {
        "gpu": "dpo-dist:0.1.0",
        "cpu": "dpo-dist:0.1.0-cpu",
    }
    devices = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "deploy" not in services["cpu"]
    for name, service in services.items():
        assert service["profiles"] == [name]  # neither starts with a plain `up`


def test_what_services_mount_is_declared_and_there(project: dict, files: dict[str, str]) -> None:
    for service in project["services"].values():
        for mount in service["configs"]:
            file = project["configs"][mount["source"]]["file"]
            assert file.removeprefix("./") in files
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in project["volumes"]
        [script] = [m["target"] for m in service["configs"] if m["source"] == "script"]
        assert service["command"] == ["bash", script]
        [run] = [m["target"] for m in service["configs"] if m["source"] == "run-file"]
        assert f"dpo-dist run {run} --preflight --set train.beta=0.3" in files["local.sh"]


def test_the_run_is_written_to_the_volume(project: dict, files: dict[str, str]) -> None:
    assert "run.output_dir=/workspace/runs" in files["local.sh"]
    assert "logs=/workspace/runs/incident-triage/logs" in files["local.sh"]
    # Folders of the image's user: a new volume takes them over with their owner.
    made = re.search(r"install --directory --owner=10001 .*", (ROOT / "Dockerfile").read_text())
    assert made
    for service in project["services"].values():
        for volume in service["volumes"]:
            assert volume.partition(":")[2] in made[0].split()


def test_services_have_no_rights_and_no_keys_of_their_own(
    project: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in project["services"].values():
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["environment"] == {"HF_TOKEN": None}


def test_an_image_has_a_version() -> None:
    with pytest.raises(ConfigError, match="give its version"):
        Compose(image="dpo-dist", cpu_image="dpo-dist:0.1.0-cpu")
