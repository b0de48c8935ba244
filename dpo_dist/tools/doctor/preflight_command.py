"""`dpo-dist preflight`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command, add_nodes, add_set, nodes_of


def run(options: argparse.Namespace) -> int:
    from dpo_dist.config.runfile import load_config
    from dpo_dist.tools.doctor.preflight import preflight

    preflight(load_config(options.run_file, options.set), nodes_of(options))
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist preflight`."""
    command = add_command(
        commands,
        "preflight",
        "check within seconds that every machine is ready for training",
        "Checks versions, run file, model, GPUs, memory, disk, the shared directory and the "
        "network between the machines. On a problem the exit code is 2 and the machine is named.",
        example="recipes/incident_triage/run.yaml",
    )
    command.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the run file")
    add_set(command)
    # Whoever starts it by hand is at all machines within two minutes.
    add_nodes(command, join_seconds=120)
