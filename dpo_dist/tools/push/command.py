"""`dpo-dist push`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo_dist.tools.arguments import Commands, add_command, add_set


def run(options: argparse.Namespace) -> int:
    from dpo_dist.tools.push.card import CardFacts
    from dpo_dist.tools.push.publish import push

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
        "write the trained model and its model card to a folder, and upload it to the Hub",
        "The folder is <run>/card; without --repo nothing leaves the machine. The token is read "
        "from HF_TOKEN.",
        example="runs/incident-triage --license apache-2.0 --dry-run",
    )
    command.add_argument("run_file", type=Path, metavar="RUN", help="a run directory or run file")
    add_set(command)
    add = command.add_argument
    add(
        "--repo",
        metavar="OWNER/NAME",
        help="repository to upload to; created as private if it does not exist",
    )
    add("--public", action="store_true", help="make a newly created repository public")
    add("--merged", action="store_true", help="upload the merged model instead of the adapter")
    add("--dry-run", action="store_true", help="write the folder only")
    add(
        "--base-model",
        metavar="OWNER/NAME",
        help="Hub id of the base model, if the run file names a path",
    )
    add(
        "--license",
        default="unknown",
        metavar="ID",
        help="licence id as the Hub spells it, e.g. apache-2.0 or other",
    )
    add("--license-name", metavar="NAME", help="name of the licence, with --license other")
    add("--license-link", metavar="URL", help="link to the licence, with --license other")
    for name, example in (("language", "en"), ("dataset", "OWNER/NAME"), ("tag", "WORD")):
        add(
            f"--{name}",
            action="append",
            default=[],
            metavar=example,
            help=(f"{name} to add to the card (repeatable)"),
        )
