"""What a node says of itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import find_cluster
from dpo_dist.estimates.host import PROCESS_BYTES
from dpo_dist.runs.run import Run
from dpo_dist.system.machine import GIB, Gpu
from dpo_dist.tools.doctor import facts as facts_of_a_node
from dpo_dist.tools.doctor.facts import gather, other_gpus
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _no_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))


@pytest.fixture
def load(write_run, tiny_model: Path):
    def of(model: Path = tiny_model, *, batch: int = 16, overrides: tuple[str, ...] = ()):
        path = write_run(
            model={"base": str(model)},
            preferences={"source": "path", "path": "p.jsonl"},
            train={
                "global_batch_size": batch,
                "accelerate_config": str(ROOT / "accelerate_configs" / "cpu_zero2.yaml"),
            },
        )
        return Run(load_config(path, overrides))

    return of


def test_a_node_s_facts(load) -> None:
    facts = gather(load(), None)
    assert facts.problems == [] and facts.processes == 2 and not facts.wants_gpus
    assert facts.memory > facts.memory_needed > 0
    lora = 16 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # r=16 on two layers
    assert facts.disk_needed == 2**30 + 3 * 16 * lora + 4 * lora
    assert facts.versions["torch"].startswith("2.")


def test_the_best_checkpoint_and_the_merged_model_need_room_too(load) -> None:
    more = ("train.select=best", "train.merge=true", "model.dtype=float32")
    plain, richer = gather(load(), None), gather(load(overrides=more), None)
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 5 * 32 + 259 * 32
    assert richer.disk_needed - plain.disk_needed == 16 * 16384 + 4 * weights


def test_another_setting_or_another_model_is_seen(load, tiny_model: Path, tmp_path: Path) -> None:
    before = gather(load(), None)
    assert gather(load(overrides=("train.beta=0.3",)), None).run != before.run
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert gather(load(copy), None).model == before.model, "the same files elsewhere"
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert gather(load(copy), None).model != before.model


def test_the_sft_model_is_looked_at_where_one_is_given(
    load, tiny_model: Path, tmp_path: Path
) -> None:
    assert gather(load(), None).sft == ""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    facts = gather(load(overrides=(f"model.sft={copy}",)), None)
    assert facts.sft == facts.model and facts.problems == []
    shutil.rmtree(copy)
    (problem,) = gather(load(overrides=(f"model.sft={copy}",)), None).problems
    assert "no such model" in problem


def test_a_hub_id_stands_for_the_commit_in_the_cache(
    load, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
        found = gather(load(overrides=("model.base=owner/name",)), None).model
        assert found == f"hub:owner/name {commit}"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("train.accelerate_config=absent.yaml",), "absent.yaml: no such file"),
        (("train.micro_batch_size=16",), "16 is not a multiple of micro_batch_size 16 x 2"),
        (("model.base=absent/deeper/model",), "no such model"),
        (("model.base=owner/name",), "owner/name: cannot read its configuration"),
    ],
)
def test_what_is_wrong_by_itself_is_a_problem_and_no_crash(load, overrides, problem) -> None:
    (found,) = gather(load(overrides=overrides), None).problems
    assert problem in found


def test_a_lock_that_was_left_is_a_problem(load, tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (0, 0))
    (found,) = gather(load(), None).problems
    assert str(lock) in found


def test_a_run_file_that_trains_nothing_needs_no_preflight(write_run) -> None:
    path = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    with pytest.raises(ConfigError, match="there is nothing to check"):
        gather(Run(load_config(path)), None)


H100 = Gpu(index="0", name="NVIDIA H100 80GB HBM3", total=81559 * 2**20, free=0, driver="580.1")
A100 = H100.model_copy(update={"name": "NVIDIA A100-SXM4-80GB", "total": 81920 * 2**20})
SMALL = A100.model_copy(update={"name": "NVIDIA A100-SXM4-40GB", "total": 40960 * 2**20})


@pytest.mark.parametrize(
    ("found", "planned", "words"),
    [
        ([H100] * 8, "8xH100-80G", None),
        ([H100] * 8, "4xH100-80G", None),
        ([A100] * 8, "8xA100-80G", None),
        ([A100] * 8, "8xH100-80G", "but this node has 8 x NVIDIA A100-SXM4-80GB (80 GiB)"),
        ([SMALL] * 8, "8xA100-80G", "8 x NVIDIA A100-SXM4-40GB (40 GiB)"),
        ([H100] * 7 + [A100], "8xH100-80G", "7 x NVIDIA H100 80GB HBM3 (80 GiB), 1 x NVIDIA A100"),
        ([H100] * 4, "8xH100-80G", "planned for 8 x H100-80G per node, but this node has 4 x"),
        ([], "L4-24G", "this node has no GPU"),
    ],
)
def test_gpus_of_another_kind_than_planned_are_named(found, planned, words) -> None:
    problem = other_gpus(found, find_cluster(planned))
    assert problem is None if words is None else words in problem


def test_planned_gpus_are_looked_for(load) -> None:
    facts = gather(load(), None, find_cluster("8xH100-80G"))
    assert any("planned for 8 x H100-80G" in problem for problem in facts.problems) or facts.gpus


def test_on_gpus_a_node_s_memory_and_what_else_would_fit_are_known(load, monkeypatch) -> None:
    monkeypatch.setattr(facts_of_a_node, "gpus", lambda: [H100] * 2)
    monkeypatch.setattr(facts_of_a_node, "available_memory", lambda: 3 * GIB)
    facts = gather(load(overrides=("train.method.type=full",)), None)
    assert facts.host_needed >= 2 * PROCESS_BYTES
    assert facts.alternatives == []  # not even the libraries fit into 3 GiB
    monkeypatch.setattr("dpo_dist.runs.resources.has_cuda", lambda: True)
    roomy = [H100.model_copy(update={"free": 3 * GIB})] * 2
    monkeypatch.setattr(facts_of_a_node, "gpus", lambda: roomy)
    monkeypatch.setattr(facts_of_a_node, "available_memory", lambda: 30 * GIB)
    assert gather(load(), None).alternatives == []  # it fits
