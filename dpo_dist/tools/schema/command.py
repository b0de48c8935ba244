"""`dpo-dist schema` and `dpo-dist config`."""

from __future__ import annotations

import argparse

from dpo_dist.tools.arguments import Command, Parser, add_run_file


def _schema(options: argparse.Namespace) -> int:
    import json

    from dpo_dist.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
    return 0


def _config(options: argparse.Namespace) -> int:
    import yaml

    from dpo_dist.config.runfile import load_config

    values = load_config(options.run_file, options.set).dump()
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), end="")
    return 0


def _no_options(parser: Parser) -> None:
    pass


SCHEMA = Command(
    "schema",
    "print the JSON schema of run files, for editors",
    "> run.schema.json",
    add=_no_options,
    run=_schema,
    details="A run file whose first line is `# yaml-language-server: $schema=run.schema.json` is "
    "then checked and completed while you type. `dpo-dist init` writes both.",
)
CONFIG = Command(
    "config",
    "print a run file with all defaults and overrides",
    "run.yaml --set train.beta=0.3",
    add=add_run_file,
    run=_config,
    details="The output is a run file, too: its paths are absolute where those of RUN.yaml are "
    "relative to it.",
)
