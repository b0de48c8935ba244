"""The command line: exit codes, messages, and a start that is instant."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_dist import cli
from dpo_dist.cli import main
from dpo_dist.errors import INTERRUPTED, PREEMPTED, Preempted
from dpo_dist.system.console import INNER
from dpo_dist.tools import COMMANDS
from tests.conftest import ROOT


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, dpo_dist.cli as c\n"
        "try: c.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'pydantic', 'anthropic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 2, "0.05 s on a quiet machine"
    assert "example: dpo-dist run run.yaml" in " ".join(done.stdout.split())


WITHOUT_A_RUN = ("init", "schema", "completion")


@pytest.mark.parametrize("command", [c.name for c in COMMANDS if c.name not in WITHOUT_A_RUN])
def test_a_missing_run_file_is_bad_input(command: str, tmp_path: Path, capsys) -> None:
    run = str(tmp_path / "absent.yaml")
    arguments = {"compare": [run, run], "launch": ["local", run]}.get(command, [run])
    assert main([command, *arguments]) == 2
    assert "absent.yaml: no such file" in capsys.readouterr().err


def test_an_unknown_key_comes_with_the_right_one(write_run, capsys) -> None:
    path = write_run(model={"base": "m"}, trian={})
    assert main(["train", str(path)]) == 2
    assert "did you mean `train`?" in capsys.readouterr().err


def test_a_phase_without_a_section_is_bad_input(write_run, capsys) -> None:
    path = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    assert main(["train", str(path)]) == 2
    assert "not configure the phase `train`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("absent/deeper/model", "no such model"),
        ("{tmp}/empty", "neither a model (config.json) nor an adapter"),
        ("{tmp}/pickled", "pickled weights are never loaded"),
    ],
)
def test_an_unusable_model_is_named_before_any_work(
    write_run, write_jsonl, tmp_path: Path, capsys, base: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    path = write_run(
        model={"base": base.format(tmp=tmp_path)},
        preferences={"source": "path", "path": "p.jsonl"},
        train={"accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml")},
    )
    assert main(["train", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("rounds", "arguments", "message"),
    [
        (2, ["judge"], "add --round N (1 to 2)"),
        (2, ["train", "--round", "3"], "the run file has rounds 1 to 2"),
        (None, ["evaluate", "--round", "1"], "the run file has no `rounds`"),
        (2, ["sample", "--round", "2"], "run that round first (--round 1)"),
    ],
)
def test_a_phase_of_a_round_is_named_by_its_number(
    write_run,
    write_jsonl,
    tmp_path: Path,
    capsys,
    rounds: int | None,
    arguments: list,
    message: str,
) -> None:
    prompts = {"path": str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "q"}]))}
    metrics = [{"type": "label_match", "field": "f"}]
    path = write_run(
        model={"base": "org/m"},
        sample={"prompts": prompts, "engine": {"type": "hf"}},
        judge={"judge": {"type": "metric", "metrics": metrics}},
        train={},
        evaluate={"prompts": prompts, "metrics": metrics},
        rounds=rounds,
    )
    assert main([arguments[0], str(path), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


NODES = ("--nodes", "2", "--node-rank", "0", "--main-address", "localhost", "--main-port", "29500")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NODES, "--launch-id is missing"),
        (("--launch-id", "a"), "--nodes is missing"),
        ((*NODES, "--launch-id", "a/b"), "--launch-id 'a/b'"),
        ((*NODES, "--launch-id", "a", "--nodes", "0"), "--nodes 0: must be at least 2"),
        ((*NODES, "--launch-id", "a", "--node-rank", "2"), "--node-rank 2: must be from 0"),
        (
            (*NODES, "--launch-id", "a", "--main-address", ""),
            "is empty: is the variable in the command set",
        ),
        ((*NODES, "--launch-id", "a", "--main-port", "0"), "--main-port 0: not a valid port"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sft", "preflight"])
def test_node_options_come_together_and_make_sense(
    write_run, capsys, command: str, options: tuple[str, ...], message: str
) -> None:
    path = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    assert main([command, str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_one_node_is_one_machine(write_run, capsys) -> None:
    path = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    assert main(["train", str(path), *NODES, "--launch-id", "a", "--nodes", "1"]) == 2
    assert "not configure the phase `train`" in capsys.readouterr().err


def told(monkeypatch, capsys, words: list[str], ending: BaseException, status: int) -> str:
    """What a command says that ends with an exception."""

    def end(*_: object) -> int:
        raise ending

    class Parser(argparse.ArgumentParser):
        """Takes the options from the real one, and ends whatever the command is."""

        def parse_args(self, words: list[str]) -> argparse.Namespace:  # type: ignore[override]
            return argparse.Namespace(**{**vars(parser.parse_args(words)), "run": end})

    parser = cli.parser()
    monkeypatch.setattr(cli, "parser", Parser)
    assert main(words) == status
    return capsys.readouterr().err


TOGETHER = ("--nodes", "2", "--node-rank", "0", "--main-address", "h", "--main-port", "1")


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ("doctor", "doctor"),
        ("run run.yaml --force --yes", "run run.yaml --yes"),
        ("run run.yaml --forc", "run run.yaml"),
        ("evaluate run.yaml --gate --round 2", "evaluate run.yaml --gate --round 2"),
        ("push runs/a --repo me/a --merged", "push runs/a --repo me/a --merged"),
        (
            "launch slurm run.yaml --partition gpu --sbatch=--force --time 1:00",
            "launch slurm run.yaml --partition gpu --sbatch=--force --time 1:00",
        ),
        (
            f"train run.yaml {' '.join(TOGETHER)} --launch-id a --join-timeout 9",
            f"train run.yaml {' '.join(TOGETHER)} --launch-id ... --join-timeout 9",
        ),
        (
            f"sft r.yaml --launch=b {' '.join(TOGETHER)}",
            f"sft r.yaml --launch-id ... {' '.join(TOGETHER)}",
        ),
    ],
)
def test_the_command_to_go_on_with_is_the_one_that_was_typed(
    monkeypatch, capsys, words: str, again: str
) -> None:
    said = told(monkeypatch, capsys, words.split(), KeyboardInterrupt(), INTERRUPTED)
    assert said == f"interrupted. To continue, run the same command again:\n  dpo-dist {again}\n"


def test_what_the_shell_would_read_otherwise_is_quoted(monkeypatch, capsys) -> None:
    words = ["train", "my run.yaml", "--set", "train.method={type: lora, r: 8}"]
    said = told(monkeypatch, capsys, words, Preempted("saved"), PREEMPTED)
    assert said.endswith("  dpo-dist train 'my run.yaml' --set 'train.method={type: lora, r: 8}'\n")


def test_a_part_of_another_command_leaves_the_command_to_that_one(monkeypatch, capsys) -> None:
    monkeypatch.setenv(INNER, "1")
    said = told(monkeypatch, capsys, ["sft", "run.yaml"], Preempted("saved"), PREEMPTED)
    assert said == "saved\n"


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_done(
    tmp_path: Path, write_run, write_jsonl, capsys
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "1", "prompt": "one"}])
    (tmp_path / "eight.yaml").write_text("num_processes: 8\n")
    path = write_run(
        model={"base": "absent/model"},
        sample={"prompts": {"path": "prompts.jsonl"}, "engine": {"type": "hf"}},
        judge={"judge": {"type": "metric", "metrics": [{"type": "regex", "pattern": "a"}]}},
        train={
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "accelerate_config": str(tmp_path / "eight.yaml"),
        },
    )
    for command in (["run"], ["run", "--preflight"], ["sweep", "--set", "train.beta=0.1,0.2"]):
        assert main([command[0], str(path), *command[1:]]) == 2
        said = capsys.readouterr()
        assert "train: global_batch_size 4 is not a multiple of" in said.err
        assert "use micro_batch_size 1 with 4 processes" in said.err
    assert not (tmp_path / "runs" / "test").exists()


def test_a_point_of_a_sweep_is_named_like_a_directory(write_run, tmp_path: Path, capsys) -> None:
    path = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    for command in ("train", "evaluate", "report"):
        assert main([command, str(path), "--point", "a/b"]) == 2
        assert "the point 'a/b' cannot be the name of a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(path), "--point", "a"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_MODE"])
def test_a_launcher_can_only_start_a_training(variable: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv(variable, "default")
    assert main(["sample", "run.yaml"]) == 2
    assert "`sample` is not a training: run it without a launcher" in capsys.readouterr().err
    nodes = ["--nodes", "2", "--node-rank", "0", "--main-address", "a", "--main-port", "1"]
    assert main(["train", "run.yaml", *nodes, "--launch-id", "x"]) == 2
    assert "has already started the ranks" in capsys.readouterr().err
