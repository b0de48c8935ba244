"""`init`, `schema`, `config` and `completion`: every template is a run file that loads."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from dpo_dist.cli import main
from dpo_dist.config.json_schema import json_schema
from dpo_dist.config.runfile import load_config
from dpo_dist.tools.init.templates import HEADER, TEMPLATES, named_files
from tests.conftest import ROOT

RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
SCHEMA = json_schema()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_the_recipe_with_all_that_it_names(name: str, tmp_path: Path, capsys) -> None:
    assert main(["init", "--template", name, str(tmp_path / "new" / "run")]) == 0
    folder = tmp_path / "new" / "run"
    text = (folder / "run.yaml").read_text(encoding="utf-8")
    recipe = TEMPLATES[name].path
    assert text == HEADER + recipe.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=run.schema.json\n# ")
    assert json.loads((folder / "run.schema.json").read_text()) == SCHEMA
    named = named_files(load_config(folder / "run.yaml"))
    assert len(named) == len(named_files(load_config(recipe))) > 0
    for file in named:
        assert file.read_bytes() == (recipe.parent / file.relative_to(folder)).read_bytes()
    written = {path for path in folder.rglob("*") if path.is_file()}
    assert written == {*named, folder / "run.yaml", folder / "run.schema.json"}
    assert f"dpo-dist run {folder / 'run.yaml'}" in capsys.readouterr().out


def test_the_default_is_minimal_in_the_working_directory(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert load_config(Path("run.yaml")).run.name == "minimal"
    assert "dpo-dist run run.yaml\n" in capsys.readouterr().out


@pytest.mark.parametrize("existing", ["run.yaml", "run.schema.json", "prompts.jsonl"])
def test_nothing_is_overwritten(existing: str, tmp_path: Path, capsys) -> None:
    (tmp_path / existing).write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert f"{existing}: exists already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["init", str(tmp_path / "file")]) == 2
    assert "file: " in capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_schema_accepts_every_recipe(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [{"trian": {}}, {"train": {"beta": -1}}, {"train": {"loss": "no"}}, {"rounds": 0}],
)
def test_the_schema_refuses_what_the_run_file_does(change: dict) -> None:
    values = yaml.safe_load((ROOT / "recipes" / "start" / "minimal.yaml").read_text())
    jsonschema.validate({**values, "rounds": 2}, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, **change}, SCHEMA)


def test_every_key_of_the_schema_is_described(capsys) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == SCHEMA
    sections = {"": printed, **printed["$defs"]}
    keys = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if name not in ("Message",)  # a record, whose fields the reference lists
    }
    assert keys[".train"]["description"].startswith("The train phase")
    assert "learning rate" in keys["Train.learning_rate"]["description"]
    assert [key for key, value in keys.items() if not value.get("description")] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_resolved_run_file_is_the_same_run(path: Path, tmp_path: Path, capsys) -> None:
    assert main(["config", str(path), "--set", "run.seed=5"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(resolved) == load_config(path, ["run.seed=5"])
    assert yaml.safe_load(resolved.read_text())["run"]["seed"] == 5


def test_a_wrong_run_file_has_no_resolved_one(tmp_path: Path, capsys) -> None:
    (tmp_path / "run.yaml").write_text("run: {name: a}\n")
    assert main(["config", str(tmp_path / "run.yaml")]) == 2
    assert "model: missing" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell: str, tmp_path: Path, capsys) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("init", "incident_triage", "launch", "slurm", "partition", "dry-run"):
        assert word in script
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


def test_bash_completes_a_command_and_its_options(tmp_path: Path, capsys) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = (
        f"source {tmp_path / 'script'}; COMP_WORDS=(dpo-dist {{}}); COMP_CWORD={{}}; "
        "_shtab_dpo_dist; echo ${{COMPREPLY[@]}}"
    )

    def completed(words: str, place: int) -> set[str]:
        done = subprocess.run(
            ["bash", "-c", ask.format(words, place)], capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    assert {"evaluate"} == completed("eval", 1)
    assert {"--template"} == completed("init --te", 2)
    assert {"minimal"} == completed("init --template min", 3)
