"""From a layout to the files of a target, and onto the disk."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dpo_dist.storage.artifacts import write_text
from dpo_dist.tools.launch.layout import Layout


class Target(Protocol):
    """Something that runs jobs. Its own options are the fields of the class."""

    name: ClassVar[str]

    def files(self, layout: Layout) -> dict[str, str]:
        """The text of each file, by its name in the layout's folder for this target.

        Raises `ConfigError` where the run file does not fit the layout.
        """
        ...

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        """The command that submits the layout's files, which lie in `folder`."""
        ...


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write the files; scripts can be executed."""
    for name, text in files.items():
        write_text(folder / name, text)
        if text.startswith("#!"):
            (folder / name).chmod(0o755)


def fill(template: str, **values: Any) -> str:
    """A template of this room, such as `slurm/train.sbatch.j2`, with its values.

    Lists of words become one line of shell with the filter `words`, a single one with `word`.
    """
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
