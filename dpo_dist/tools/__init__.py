"""The commands. Each has a folder, whose `command.py` defines its options and its action."""

from __future__ import annotations

from dpo_dist.tools.arguments import Command
from dpo_dist.tools.compare import command as compare
from dpo_dist.tools.completion import command as completion
from dpo_dist.tools.doctor import command as doctor
from dpo_dist.tools.init import command as init
from dpo_dist.tools.launch import command as launch
from dpo_dist.tools.plan import command as plan
from dpo_dist.tools.push import command as push
from dpo_dist.tools.run import command as run
from dpo_dist.tools.schema import command as schema
from dpo_dist.tools.sweep import command as sweep
from dpo_dist.tools.watch import command as watch

COMMANDS: tuple[Command, ...] = (
    init.COMMAND,
    run.RUN,
    *run.PHASES,
    sweep.COMMAND,
    plan.COMMAND,
    launch.COMMAND,
    doctor.PREFLIGHT,
    doctor.DOCTOR,
    watch.COMMAND,
    push.COMMAND,
    compare.COMMAND,
    schema.CONFIG,
    schema.SCHEMA,
    completion.COMMAND,
)
