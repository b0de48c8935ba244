"""`dpo-dist init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Command, Parser
from dpo_dist.tools.init.templates import TEMPLATES


def _add(parser: Parser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="FOLDER",
        help="where to write (default: the current folder)",
    )
    described = "; ".join(f"{name}: {found.summary}" for name, found in TEMPLATES.items())
    parser.add_argument(
        "--template",
        choices=list(TEMPLATES),
        default="minimal",
        help=f"{described} (default: minimal)",
    )


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.tools.init.templates import write_template

    template = TEMPLATES[options.template]
    run_file, *others = write_template(template, options.folder)
    print(f"wrote {run_file} and {', '.join(str(path) for path in others)}")
    for line in template.next_steps(run_file):
        print(line)
    return 0


COMMAND = Command(
    "init",
    "write a commented run file, and the data that it needs, to start from",
    "--template claude my-run",
    add=_add,
    run=_run,
    details="Nothing is asked, downloaded or overwritten.",
)
