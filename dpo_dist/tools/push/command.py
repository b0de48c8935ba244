"""`dpo-dist push`."""

from __future__ import annotations

import argparse

from dpo_dist.system.options import add_options, from_options
from dpo_dist.tools.arguments import Command, Parser, add_run


def _add(parser: Parser) -> None:
    from dpo_dist.reporting.card import CardFacts

    add_run(parser)
    parser.add_argument(
        "--public", action="store_true", help="make a newly created repository public"
    )
    parser.add_argument(
        "--merged", action="store_true", help="upload the merged model instead of the adapter"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write the folder without uploading it"
    )
    add_options(parser, CardFacts)


def _run(options: argparse.Namespace) -> int:
    from dpo_dist.reporting.card import CardFacts
    from dpo_dist.tools.push.publish import push

    push(
        options.run_file,
        options.set,
        from_options(CardFacts, options, adapter=not options.merged),
        merged=options.merged,
        dry_run=options.dry_run,
        private=not options.public,
    )
    return 0


COMMAND = Command(
    "push",
    "write the trained model and its model card to a folder, and upload it to the Hub",
    "runs/incident-triage --license apache-2.0 --dry-run",
    add=_add,
    run=_run,
    details="The folder is <run>/card. Without --repo nothing is uploaded. The token is read from "
    "HF_TOKEN.",
)
