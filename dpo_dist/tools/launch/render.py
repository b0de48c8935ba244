"""Rendering and writing of a target's files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from dpo_dist.storage.artifacts import write_text
from dpo_dist.tools.launch.layout import Layout


class Target(Protocol):
    """A machine or scheduler that runs jobs. Its dataclass fields are options of its command."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]

    def files(self, layout: Layout) -> dict[str, str]:
        """The text of each file by name. Raises `ConfigError` if the run file does not fit."""
        ...

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        """The command that submits the files, which are in `folder`."""
        ...


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write the files, and make scripts executable."""
    for name, text in files.items():
        write_text(folder / name, text)
        if text.startswith("#!"):
            (folder / name).chmod(0o755)


def fill(template: str, **values: Any) -> str:
    """Render a template of this package, such as `slurm/job.sbatch.j2`. The filter `words` quotes a
    list of words for the shell, `word` a single one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dpo_dist.tools.launch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["words"] = lambda words: shlex.join(map(str, words))
    environment.filters["word"] = lambda word: shlex.quote(str(word))
    return environment.get_template(template).render(values)


class _Plain(yaml.SafeDumper):
    """Writes readable YAML: no anchors, and blocks for texts of several lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """The documents, separated by `---`; keys keep their order."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100)
