"""`dpo-dist plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command, add_set


def run(options: argparse.Namespace) -> int:
    from dpo_dist.config.runfile import load_config
    from dpo_dist.errors import ConfigError
    from dpo_dist.estimates.hardware import find_cluster, read_gpus
    from dpo_dist.storage.artifacts import write_json
    from dpo_dist.tools.plan.figure import Given
    from dpo_dist.tools.plan.run import forecast
    from dpo_dist.tools.plan.show import to_terminal
    from dpo_dist.tools.plan.subject import find_subject

    config = load_config(options.run_file, options.set)
    if options.gpus is None:
        raise ConfigError(f"name the GPUs, e.g. --gpus 8xH100-80G; known: {', '.join(read_gpus())}")
    cluster = find_cluster(options.gpus, nodes=options.nodes, network_gbits=options.network_gbits)
    given = Given(options.pairs, options.tokens_per_pair, options.prompts, options.eval_prompts)
    subject = find_subject(
        config, cluster, given, preset=options.model_shape, calibration=options.calibrate
    )
    figures = forecast(subject)
    print(to_terminal(figures), end="")
    if options.json:
        write_json(options.json, figures)
    if figures["problems"]:
        raise ConfigError("\n".join(figures["problems"]))
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist plan`."""
    command = add_command(
        commands,
        "plan",
        "estimate what a run will take on given GPUs: memory, hours, money and disk",
        "Nothing is started or downloaded. The formulas are in docs/scaling.md.",
        example="recipes/incident_triage/full.yaml --gpus 8xH100-80G --nodes 2",
    )
    command.add_argument("run_file", type=Path, metavar="RUN.yaml", help="the run file")
    add_set(command)
    add = command.add_argument
    add("--gpus", metavar="NxGPU", help="the GPUs of one node, e.g. 8xH100-80G")
    add("--nodes", type=int, default=1, metavar="N", help="number of such nodes (default: 1)")
    add(
        "--network-gbits",
        type=float,
        default=400,
        metavar="GBITS",
        help="network bandwidth of a node in Gb/s, for all its GPUs together (default: 400)",
    )
    add("--model-shape", metavar="NAME", help="shape of a common model, e.g. Llama-3.1-8B")
    add(
        "--pairs",
        type=_count,
        metavar="N",
        help="number of preference pairs, if they are not on this machine",
    )
    add(
        "--tokens-per-pair",
        type=float,
        metavar="M",
        help="mean tokens per pair, counting the prompt once",
    )
    add(
        "--prompts",
        type=_count,
        metavar="N",
        help="number of prompts to sample, if they are not on this machine",
    )
    add("--eval-prompts", type=_count, metavar="N", help="number of held-out prompts, likewise")
    add("--calibrate", type=Path, metavar="RUN", help="use rates measured in a finished run")
    add("--json", type=Path, metavar="FILE", help="also write all figures, as JSON")


def _count(text: str) -> int:
    """A number of rows: at least one."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return count
