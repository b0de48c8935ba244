"""A plan, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from dpo_dist.estimates.fit import Fit
from dpo_dist.estimates.sharding import MemoryPart
from dpo_dist.reporting.tables import ABSENT, Cell, Table, to_text
from dpo_dist.reporting.text import visible
from dpo_dist.system.machine import GIB
from dpo_dist.tools.plan.chosen import RunFileWay
from dpo_dist.tools.plan.data import Quantity
from dpo_dist.tools.plan.hours import GenerationMemory, PhaseTime
from dpo_dist.tools.plan.judging import Bill
from dpo_dist.tools.plan.memory import Recommendation
from dpo_dist.tools.plan.plan import Plan

WIDTH = 100  # columns of the terminal
UNKNOWN = "unknown"
FREE = "no charge"
# The columns of the memory table.
PARTS: dict[MemoryPart, str] = {
    "weights": "weights",
    "gradients": "grad.",
    "optimizer": "optim.",
    "reference": "ref.",
    "activations": "activations",
    "head": "head",
    "communication": "comm.",
}
NOTE = (
    "GiB per GPU for the longest micro-batch. The run file's line has the run file's settings. "
    "Every other line has its fastest setting that fits, or else the one with the least memory. * "
    "marks the fastest line of a method, of equally fast ones the simplest. RAM is GiB of CPU "
    "memory per node at its peak (loading, training or saving). Pairs are packed, with "
    "each prompt once, and the head works in tiles. `ref.` is a second model: full fine-tuning has "
    "one if the KL is measured or the reference is live. `comm.` is buckets and, under ZeRO-3, "
    "gathered weights."
)


def to_terminal(plan: Plan) -> str:
    """The plan as text: inputs, memory, recommendation, hours, costs and disk."""
    parts = [part for part in _parts(plan) if part]
    return visible("\n\n".join(part.rstrip() for part in parts)) + "\n"


def _parts(plan: Plan) -> Iterator[str]:
    yield _heading(plan)
    yield _section("Inputs", _figures(plan.figures))
    if plan.memory:
        room = plan.cluster.usable_bytes / GIB
        title = f"Training memory (at most {room:.1f} GiB per GPU)"
        yield _section(title, _memory(plan.memory, plan.run_file), NOTE)
    if plan.run_file is not None:
        yield _run_file(plan.run_file)
    if plan.recommendation is not None:
        yield _recommendation(plan.recommendation)
    if plan.generation is not None:
        yield _generation(plan.generation)
    if plan.phases:
        total = sum(phase.hours for phase in plan.phases)
        last = f"Total of the GPU phases: {_hours(total)}, {plan.gpu_hours:,.1f} GPU hours."
        yield _section("Hours", _hours_table(plan.phases), last)
    if plan.judges:
        yield _section("Judges", _judges(plan.judges))
    yield _section("Disk", _disk(plan.disk))
    yield "\n".join(f"Not included: {line}" for line in plan.unknown)


def _heading(plan: Plan) -> str:
    model, cluster = plan.model, plan.cluster
    size = model.parameters
    shown = f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.0f} M"
    lines = [
        f"{plan.run} on {cluster.label}",
        f"model    {model.base}, {shown} weights (shape: {model.shape_from})",
        f"GPU      {cluster.memory_bytes / GIB:.1f} GiB; {cluster.source}",
    ]
    if cluster.nodes > 1:
        lines.append(f"network  {cluster.network_gbits:g} Gb/s per node")
    return "\n".join(lines)


def _section(title: str, table: Table, note: str = "") -> str:
    below = "\n" + textwrap.fill(note, WIDTH) if note else ""
    return f"{title}\n\n{to_text(table)}{below}"


def _figures(figures: Mapping[str, Quantity]) -> Table:
    rows = [
        (name, (Cell(_number(found.value)), Cell(found.source), Cell(found.note)))
        for name, found in figures.items()
    ]
    return Table(("", "Value", "Source", "Note"), tuple(rows))


def _memory(ways: Sequence[Fit], own: RunFileWay | None) -> Table:
    rows = [
        (f"{'*' if way.recommended else ' '}{way.method} {way.strategy}", tuple(_memory_cells(way)))
        for way in ways
    ]
    if own is not None and own.way is not None:
        rows.insert(0, (" the run file's", tuple(_memory_cells(own.way))))
    headers = ("", *PARTS.values(), "total", "RAM", "fits", "batch", "checkpointing", "s/step")
    return Table(headers, tuple(rows))


def _memory_cells(row: Fit) -> Iterator[Cell]:
    yield from (Cell(f"{row.parts[part] / GIB:.1f}") for part in PARTS)
    yield Cell(f"{row.total / GIB:.1f}")
    yield Cell(f"{row.host.peak / GIB:,.0f}")
    yield Cell("yes" if row.fits else "no")
    yield Cell(str(row.micro_batch_size))
    yield Cell(row.gradient_checkpointing)
    yield Cell(f"{row.step_seconds:.2f}" if row.fits else ABSENT)


def _run_file(found: RunFileWay) -> str:
    """The run file's settings, and whether they fit."""
    way = found.way
    if way is None:
        outcome = found.problem or "no way to train on these GPUs"
    elif found.train_hours is None:
        outcome = f"does not fit, {way.total / GIB:.1f} GiB per GPU"
    else:
        outcome = (
            f"{way.method} {way.strategy} fits, {way.total / GIB:.1f} GiB per GPU with "
            f"checkpointing {way.gradient_checkpointing}; {way.step_seconds:.2f} s per step, "
            f"{_hours(found.train_hours)} in total"
        )
    text = (
        f"{found.accelerate_config}, micro_batch_size {found.micro_batch_size}, "
        f"gradient_checkpointing {found.gradient_checkpointing}: {outcome}. {found.note}"
    )
    return (
        f"The run file's settings\n\n{textwrap.fill(text.strip(), WIDTH, break_on_hyphens=False)}"
    )


def _recommendation(found: Recommendation) -> str:
    lines = [
        "Recommended",
        "",
        *found.overrides,
        f"{found.machines} x {found.processes // found.machines} processes (`dpo-dist "
        "launch` writes these numbers into its copy of the file);",
        f"micro-batches per step: {found.accumulation}; {found.step_seconds:.2f} s per step, "
        f"{_hours(found.train_hours)} in total",
        "",
        f"Largest part: {found.largest}, {found.largest_bytes / GIB:.1f} GiB; {found.remedy}.",
        f"Next cheaper: {found.cheaper}.",
    ]
    host = found.host
    lines.append(
        f"CPU memory per node: {host.peak / GIB:,.0f} GiB (loading {host.loading / GIB:,.0f}, "
        f"training {host.training / GIB:,.0f}, saving {host.saving / GIB:,.0f})."
    )
    return "\n".join(lines)


def _generation(found: GenerationMemory) -> str:
    return (
        f"Sampling memory per GPU: weights {found.weights / GIB:.1f} GiB, KV cache "
        f"{found.kv_cache / GIB:.1f} GiB\n({found.kv_bytes_a_token / 1024:.0f} KiB per "
        f"token): {found.sequences_that_fit:,} sequences at a time; max_num_seqs is "
        f"{found.max_num_seqs}."
    )


def _hours_table(phases: Sequence[PhaseTime]) -> Table:
    rows = []
    for phase in phases:
        rate = "measured" if phase.measured else "assumed"
        cells = f"{phase.tokens / 1e6:,.1f} M", _hours(phase.hours), rate, phase.note
        rows.append((phase.phase, tuple(map(Cell, cells))))
    return Table(("", "Tokens", "Time", "Rate", ""), tuple(rows))


def _judges(judges: Sequence[Bill]) -> Table:
    dates = {bill.prices_as_of for bill in judges} - {""}
    when = f"online (prices of {', '.join(sorted(dates))})" if dates else "online"
    rows = [
        (f"{bill.phase}: {bill.judge}", tuple(map(Cell, _judge_cells(bill)))) for bill in judges
    ]
    headers = ("", "Requests", "Tokens read / written", when, "batch", "max_usd", "Time")
    return Table(headers, tuple(rows))


def _judge_cells(bill: Bill) -> Iterator[str]:
    read, written = bill.million_tokens_read, bill.million_tokens_written
    free = bill.usd.online == 0
    yield f"{bill.requests:,}"
    yield f"{read:.1f} M / {written:.1f} M" if read + written else ABSENT
    yield FREE if free else _usd(bill.usd.online)
    yield FREE if free else _usd(bill.usd.batch) if bill.transport else ABSENT
    yield ABSENT if bill.max_usd is None else _usd(bill.max_usd)
    if bill.transport == "batch":
        yield f"up to {bill.hours:.0f} h (batch)"
    else:
        yield _hours(bill.hours) if bill.hours else ABSENT


def _disk(disk: Mapping[str, int | float]) -> Table:
    rows = [(name, (Cell(_bytes(size)),)) for name, size in disk.items() if size]
    rows.append(("total", (Cell(_bytes(sum(disk.values()))),)))
    return Table(("", "At most"), tuple(rows))


def _usd(value: float | None) -> str:
    """An unknown price is not zero."""
    return UNKNOWN if value is None else f"${value:,.2f}"


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"
