"""`dpo-dist push`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.commands.arguments import Commands, add_command, add_set


def run(options: argparse.Namespace) -> int:
    from dpo_dist.publishing import push
    from dpo_dist.reporting.card import CardFacts

    facts = CardFacts(
        base_model=options.base_model,
        adapter=not options.merged,
        repo=options.repo,
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        languages=tuple(options.language),
        datasets=tuple(options.dataset),
        tags=tuple(options.tag),
    )
    push(
        options.run_file,
        options.set,
        facts,
        merged=options.merged,
        dry_run=options.dry_run,
        private=not options.public,
    )
    return 0


def add(commands: Commands) -> None:
    """The parser of `dpo-dist push`."""
    command = add_command(
        commands,
        "push",
        "make a folder of the trained model with its model card, and upload it to the Hub",
        "The folder is <run>/card; without --repo nothing leaves the machine. The token is read "
        "from HF_TOKEN.",
        example="runs/incident-triage --license apache-2.0 --dry-run",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run's directory or run file")
    add_set(command)
    add = command.add_argument
    add("--repo", metavar="OWNER/NAME", help="where to upload to; made, private, if need be")
    add("--public", action="store_true", help="a repository that is made now is public")
    add("--merged", action="store_true", help="the whole model instead of the adapter")
    add("--dry-run", action="store_true", help="write the folder only")
    add("--base-model", metavar="OWNER/NAME", help="the base's Hub id, where the run has a path")
    add("--license", default="unknown", metavar="ID", help="the Hub's id, e.g. apache-2.0, other")
    add("--license-name", metavar="NAME", help="with --license other")
    add("--license-link", metavar="URL", help="with --license other")
    for name, example in (("language", "en"), ("dataset", "OWNER/NAME"), ("tag", "WORD")):
        add(f"--{name}", action="append", default=[], metavar=example, help="(repeatable)")
