"""The run file's accelerate configurations, for other machines."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from dpo_dist.errors import ConfigError
from dpo_dist.tools.launch.accelerate import accelerate_files
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import ONE_EACH, ZERO2, layout


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_all_processes_of_all_machines_and_everything_else_as_it_was(tmp_path: Path) -> None:
    files = accelerate_files(layout(*ZERO2, *ONE_EACH, nodes=2, gpus_per_node=4))
    assert sorted(files) == ["accelerate_sft.yaml", "accelerate_train.yaml"]
    values = yaml.safe_load(files["accelerate_train.yaml"])
    given = yaml.safe_load((ROOT / "accelerate_configs" / "cpu_zero2.yaml").read_text())
    given.pop("machine_rank")
    assert values == {**given, "num_machines": 2, "num_processes": 8}
    path = tmp_path / "train.yaml"
    path.write_text(files["accelerate_train.yaml"])
    assert load_config_from_file(str(path)).num_processes == 8


def test_without_gpus_a_machine_has_the_processes_of_the_file() -> None:
    files = accelerate_files(layout(*ZERO2, *ONE_EACH, nodes=2))
    assert yaml.safe_load(files["accelerate_train.yaml"])["num_processes"] == 4


def test_processes_that_cannot_share_the_global_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="sft: global_batch_size 4 is not a multiple of"):
        accelerate_files(layout(*ZERO2, nodes=3, gpus_per_node=1))


def test_a_configuration_for_processors_is_not_taken_to_gpus() -> None:
    with pytest.raises(ConfigError, match=r"name another with --set train.accelerate_config="):
        accelerate_files(layout(nodes=1, gpus_per_node=1))


def test_a_configuration_for_one_process_is_not_taken_to_two_machines() -> None:
    with pytest.raises(ConfigError, match=r"is for one process .* this layout needs 2"):
        accelerate_files(layout(*ONE_EACH, nodes=2))


def test_a_configuration_of_several_machines_is_cut_to_size(tmp_path: Path) -> None:
    path = tmp_path / "four.yaml"
    path.write_text("num_machines: 4\nnum_processes: 8\nuse_cpu: true\n")
    settings = [f"{phase}.accelerate_config={path}" for phase in ("sft", "train")]
    files = accelerate_files(layout(*settings, *ONE_EACH, nodes=1))
    assert yaml.safe_load(files["accelerate_sft.yaml"])["num_processes"] == 2
