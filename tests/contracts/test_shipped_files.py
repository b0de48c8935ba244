"""Everything that is shipped loads, and every field of the run file is read by somebody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import dpo_dist
from dpo_dist import config as schema
from dpo_dist.config import Sft, Train
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.accelerate_command import check_launch
from dpo_dist.training.job import accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape
from tests.conftest import ROOT
from tests.field_reads import unread

RUN_FILES = sorted(ROOT.glob("recipes/*/*.yaml"))
ACCELERATE_FILES = sorted(ROOT.glob("accelerate_configs/*.yaml"))


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_run_file_loads_and_all_it_names_is_there(path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    named = re.findall(r"(?:path|rubric): (/\S+)", yaml.safe_dump(config.model_dump(mode="json")))
    assert named
    for file in named:
        assert (ROOT / file).is_file(), file
    for section in (config.sft, config.train):
        if section is not None:
            shape = LaunchShape.read(section.accelerate_file)
            assert accumulation_steps(section, shape.processes) > 0


@pytest.mark.parametrize("path", ACCELERATE_FILES, ids=lambda path: path.name)
def test_an_accelerate_config_is_accelerate_s(path) -> None:
    loaded = load_config_from_file(str(path))
    shape = LaunchShape.read(path)
    assert (loaded.num_processes, loaded.num_machines) == (shape.processes, shape.machines)
    stage = shape.zero_stage
    assert stage == int((loaded.deepspeed_config or {}).get("zero_stage", 0))
    assert (stage > 0) == (str(loaded.distributed_type) == "DistributedType.DEEPSPEED")
    assert path.read_text().startswith("# "), "when to use it"


@pytest.mark.parametrize("path", ACCELERATE_FILES, ids=lambda path: path.name)
def test_a_deepspeed_config_asks_for_what_the_trainer_expects(path) -> None:
    values = load_config_from_file(str(path)).deepspeed_config
    if not values:
        return
    # "auto" is what the trainer fills in: the batch arithmetic is the run file's.
    assert values["gradient_accumulation_steps"] == values["gradient_clipping"] == "auto"
    sharded = values["zero_stage"] == 3
    assert values["zero3_init_flag"] == sharded
    assert values.get("zero3_save_16bit_model", False) == sharded, "else only shards are saved"


@pytest.mark.parametrize("path", ACCELERATE_FILES, ids=lambda path: path.name)
def test_an_accelerate_config_fits_the_defaults_of_the_run_file(path, monkeypatch) -> None:
    monkeypatch.setattr("dpo_dist.training.accelerate_command.has_cuda", lambda: True)
    count = LaunchShape.read(path).machines
    nodes = Nodes(count, 0, "localhost", 29500, "id") if count > 1 else None
    processes = LaunchShape.read(path).processes
    batch = {"global_batch_size": 128, "micro_batch_size": 2, "accelerate_config": path}
    for settings in (Sft(data={"path": "rows.jsonl"}, **batch), Train(**batch)):
        check_launch(settings, nodes)
        assert accumulation_steps(settings, processes) * 2 * processes == 128
    on_gpus = not path.name.startswith("cpu")
    assert load_config_from_file(str(path)).mixed_precision == ("bf16" if on_gpus else "no")
    if on_gpus:
        with pytest.raises(ConfigError, match="`bf16` is false"):
            check_launch(Train(bf16=False, **batch), nodes)


def test_every_field_of_the_run_file_is_read_somewhere() -> None:
    assert unread(ROOT / "dpo_dist") == set()


def test_a_field_that_nobody_reads_is_found_whatever_others_are_called(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        "from dpo_dist.config import Config, DataSource, Lora as Adapter\n"
        "class Reader:\n"
        "    def __init__(self, config: Config) -> None:\n"
        "        self._train = config.train\n"
        "    def read(self, source: DataSource, other) -> None:\n"
        "        print(self._train.kl.budget, source.path, other.split, Path(source.path).name)\n"
        "        if isinstance(method := self._train.method, Adapter):\n"
        "            print(getattr(method, 'alpha'))\n"
    )
    found = unread(tmp_path)
    assert {"KlMonitor.stop", "DataSource.split", "DataPreferences.mixture", "Lora.r"} <= found
    assert not {"KlMonitor.budget", "DataSource.path", "Lora.alpha", "Train.method"} & found


def test_a_property_of_a_section_reads_what_it_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        "from dpo_dist.config import EngineConfig\n"
        "def read(engine: EngineConfig) -> None:\n"
        "    print(engine.fixed_workers)\n"
    )
    found = unread(tmp_path)
    assert not {"HfEngine.workers", "VllmEngine.workers"} & found
    assert {"VllmEngine.tensor_parallel_size", "HfEngine.batch_size"} <= found
    assert not {"HfEngine.type", "VllmEngine.type", "VllmServer.type"} & found


def test_the_public_names_stay() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", dpo_dist.__version__)
    sections = set(schema.Config.model_fields)
    assert sections == {
        *("run", "model", "sft", "sample", "judge", "preferences"),
        *("train", "rounds", "evaluate", "report"),
    }
