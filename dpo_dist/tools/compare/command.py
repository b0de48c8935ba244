"""`dpo-dist compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command


def run(options: argparse.Namespace) -> int:
    from dpo_dist.storage.artifacts import write_json, write_text
    from dpo_dist.tools.compare.runs import compare_runs
    from dpo_dist.tools.compare.show import to_page, to_terminal

    figures = compare_runs(options.runs)
    print(to_terminal(figures), end="")
    if options.json:
        write_json(options.json, figures)
    if options.html:
        write_text(options.html, to_page(figures))
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist compare`."""
    command = add_command(
        commands,
        "compare",
        "show finished runs side by side, and compare their SFT+DPO answers where they share "
        "prompts",
        example="runs/first runs/second",
    )
    command.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run directory, the directory of a sweep's point, or a run file",
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures, as JSON"
    )
    command.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page")
