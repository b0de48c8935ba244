"""`dpo-dist plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.system.options import add_options, from_options
from dpo_dist.tools.arguments import Command, Parser, add_run_file, load_run


def _add(parser: Parser) -> None:
    from dpo_dist.tools.plan.data import Given

    add_run_file(parser)
    add = parser.add_argument
    add("--gpus", metavar="NxGPU", help="the GPUs of one node, e.g. 8xH100-80G")
    add("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    add(
        "--network-gbits",
        type=float,
        default=400,
        metavar="GBITS",
        help="network bandwidth of a node in Gb/s, for all its GPUs together (default: 400)",
    )
    add("--model-shape", metavar="NAME", help="shape of a common model, e.g. Llama-3.1-8B")
    add_options(parser, Given)
    add("--calibrate", type=Path, metavar="RUN", help="use rates measured in a finished run")
    add("--json", type=Path, metavar="FILE", help="also write all figures, as JSON")


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.errors import ConfigError
    from dpo_dist.estimates.hardware import find_cluster, read_gpus
    from dpo_dist.storage.figures import write_figures
    from dpo_dist.tools.plan.data import Given
    from dpo_dist.tools.plan.plan import make_plan
    from dpo_dist.tools.plan.show import to_terminal
    from dpo_dist.tools.plan.subject import find_subject
    from dpo_dist.training.arguments import check_arguments

    run = load_run(options)
    for section in run.trainings.values():
        check_arguments(section)
    if options.gpus is None:
        raise ConfigError(f"name the GPUs, e.g. --gpus 8xH100-80G; known: {', '.join(read_gpus())}")
    cluster = find_cluster(options.gpus, nodes=options.nodes, network_gbits=options.network_gbits)
    given = from_options(Given, options)
    subject = find_subject(
        run, cluster, given, preset=options.model_shape, calibration=options.calibrate
    )
    plan = make_plan(subject)
    print(to_terminal(plan), end="")
    if options.json:
        write_figures(options.json, plan)
    if plan.problems:
        raise ConfigError("\n".join(plan.problems))
    return 0


COMMAND = Command(
    "plan",
    "estimate the memory, hours, cost and disk space of a run on given GPUs",
    "run.yaml --gpus 8xH100-80G --nodes 2",
    add=_add,
    run=_run,
    details="Nothing is started or downloaded. The formulas are in docs/scaling.md.",
)
