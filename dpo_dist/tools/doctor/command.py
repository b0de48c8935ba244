"""`dpo-dist doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command, add_set


def run(options: argparse.Namespace) -> int:
    from dpo_dist.config.runfile import load_config
    from dpo_dist.tools.doctor.doctor import examine, to_terminal

    config = load_config(options.run_file, options.set) if options.run_file else None
    findings = examine(config)
    print(to_terminal(findings))
    return int(any(finding.state == "failed" for _, finding in findings))


def add(commands: Commands) -> None:
    """The parser of `dpo-dist doctor`."""
    command = add_command(
        commands,
        "doctor",
        "show this machine's environment and its problems",
        "Nothing is changed. The exit code is 1 if there are errors.",
        example="recipes/incident_triage/run.yaml",
    )
    command.add_argument(
        "run_file",
        type=Path,
        nargs="?",
        metavar="RUN.yaml",
        help="also check what this run file needs",
    )
    add_set(command)
