"""`dpo-dist doctor` and `dpo-dist preflight`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import (
    Command,
    Parser,
    add_nodes,
    add_run_file,
    add_set,
    load_run,
    nodes_of,
)


def _add_doctor(parser: Parser) -> None:
    parser.add_argument(
        "run_file",
        type=Path,
        nargs="?",
        metavar="RUN.yaml",
        help="also check what this run file needs",
    )
    add_set(parser)


def _doctor(options: argparse.Namespace) -> int:
    from dpo_dist.tools.doctor.doctor import examine, to_terminal

    findings = examine(load_run(options) if options.run_file else None)
    print(to_terminal(findings))
    return int(any(finding.state == "failed" for _, finding in findings))


def _add_preflight(parser: Parser) -> None:
    add_run_file(parser)
    add_nodes(parser, join_seconds=120)  # a person starts it by hand on every machine
    parser.add_argument(
        "--gpus", metavar="NxGPU", help="the GPUs of a node that were planned, e.g. 8xH100-80G"
    )


def _preflight(options: argparse.Namespace) -> int:
    from dpo_dist.estimates.hardware import find_cluster
    from dpo_dist.tools.doctor.preflight import preflight

    planned = None if options.gpus is None else find_cluster(options.gpus)
    preflight(load_run(options), nodes_of(options), planned)
    return 0


DOCTOR = Command(
    "doctor",
    "show this machine's environment and its problems",
    "recipes/incident_triage/run.yaml",
    add=_add_doctor,
    run=_doctor,
    details="Nothing is changed. The exit code is 1 if there are errors.",
)
PREFLIGHT = Command(
    "preflight",
    "check within seconds that every machine is ready for training",
    "recipes/incident_triage/run.yaml",
    add=_add_preflight,
    run=_preflight,
    details="Checks versions, run file, model, GPUs, memory of GPUs and CPU, disk, the shared "
    "directory and the network between the machines. If a check fails, the exit code is 2 and the "
    "machine is named.",
)
