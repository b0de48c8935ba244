"""`dpo-dist compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Command, Parser


def _add(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run directory, the directory of a sweep's point, or a run file",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures, as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page")


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.storage.artifacts import write_text
    from dpo_dist.storage.figures import write_figures
    from dpo_dist.tools.compare.runs import compare_runs
    from dpo_dist.tools.compare.show import to_page, to_terminal

    figures = compare_runs(options.runs)
    print(to_terminal(figures), end="")
    if options.json:
        write_figures(options.json, figures)
    if options.html:
        write_text(options.html, to_page(figures))
    return 0


COMMAND = Command(
    "compare",
    "show finished runs side by side, and compare their SFT+DPO answers to shared prompts",
    "runs/first runs/second",
    add=_add,
    run=_run,
)
