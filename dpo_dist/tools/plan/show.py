"""What a run will take, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_dist.reporting.tables import ABSENT, Cell, Table, to_text
from dpo_dist.reporting.text import visible
from dpo_dist.system.machine import GIB

WIDTH = 100  # columns of the terminal
UNKNOWN = "unknown"
PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "head", "communication")
SHORT = {"gradients": "grad.", "optimizer": "optim.", "reference": "ref.", "communication": "comm."}
NOTE = (
    "GiB of one GPU, for the longest micro-batch; the run file's at its own setting, every other "
    "line at its fastest that fits, else at its smallest; * is the fastest, or the simplest of "
    "those as fast. A row is a packed pair with the prompt once, the head works in tiles, and the "
    "reference is cached: `ref.` is a second model only where the KL of a full fine-tuning is "
    "measured or the reference is live. `comm.` are buckets, and under ZeRO-3 the gathered weights "
    "of the layers that are alive."
)


def to_terminal(figures: Mapping[str, Any]) -> str:
    """The forecast: what it stands on, memory, hours, money, disk, and what to do."""
    parts = [part for part in _parts(figures) if part]
    return visible("\n\n".join(part.rstrip() for part in parts)) + "\n"


def _parts(figures: Mapping[str, Any]) -> Iterator[str]:
    yield _heading(figures)
    yield _section("Inputs", _figures(figures["figures"]))
    if figures["memory"]:
        room = figures["cluster"]["usable_bytes"] / GIB
        title = f"Training memory ({room:.1f} GiB of a GPU may be filled)"
        yield _section(title, _memory(figures), NOTE)
    yield _run_file(figures["run_file"])
    yield _recommendation(figures)
    yield _generation(figures["generation"])
    if figures["phases"]:
        total = sum(phase["hours"] for phase in figures["phases"])
        last = f"Total of the GPU phases: {_hours(total)}, {figures['gpu_hours']:,.1f} GPU hours."
        yield _section("Hours", _hours_table(figures["phases"]), last)
    if figures["judges"]:
        yield _section("Judges", _judges(figures["judges"]))
    yield _section("Disk", _disk(figures["disk"]))
    yield "\n".join(f"Not included: {line}" for line in figures["unknown"])


def _heading(figures: Mapping[str, Any]) -> str:
    model, cluster = figures["model"], figures["cluster"]
    size = model["parameters"]
    shown = f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.0f} M"
    lines = [
        f"{figures['run']} on {cluster['label']}",
        f"model    {model['base']}, {shown} weights (shape: {model['shape_from']})",
        f"GPU      {cluster['memory_bytes'] / GIB:.1f} GiB; {cluster['source']}",
    ]
    if cluster["nodes"] > 1:
        lines.append(f"network  {cluster['network_gbits']:g} Gb/s a node")
    return "\n".join(lines)


def _section(title: str, table: Table, note: str = "") -> str:
    below = "\n" + textwrap.fill(note, WIDTH) if note else ""
    return f"{title}\n\n{to_text(table)}{below}"


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (name, (Cell(_number(found["value"])), Cell(found["source"]), Cell(found["note"])))
        for name, found in figures.items()
    ]
    return Table(("", "Value", "Known", "From"), tuple(rows))


def _memory(figures: Mapping[str, Any]) -> Table:
    headers = ("", *(SHORT.get(part, part) for part in PARTS), "total", "fits", "batch")
    rows = [(_way(row), tuple(_memory_cells(row))) for row in figures["memory"]]
    if own := figures["run_file"]["way"]:
        rows.insert(0, (" the run file's", tuple(_memory_cells(own))))
    return Table((*headers, "checkpointing", "s/step"), tuple(rows))


def _way(row: Mapping[str, Any]) -> str:
    mark = "*" if row["recommended"] else " "
    return f"{mark}{row['method']} {row['strategy']}"


def _memory_cells(row: Mapping[str, Any]) -> Iterator[Cell]:
    yield from (Cell(f"{row['parts'][part] / GIB:.1f}") for part in PARTS)
    yield Cell(f"{row['total'] / GIB:.1f}")
    yield Cell("yes" if row["fits"] else "no")
    yield Cell(str(row["micro_batch_size"]))
    yield Cell(row["gradient_checkpointing"])
    yield Cell(f"{row['step_seconds']:.2f}" if row["fits"] else ABSENT)


def _run_file(found: Mapping[str, Any] | None) -> str:
    """What becomes of the run file as it is."""
    if found is None:
        return ""
    settings = (
        f"{found['accelerate_config']}, micro_batch_size {found['micro_batch_size']}, "
        f"gradient_checkpointing {found['gradient_checkpointing']}"
    )
    way = found["way"]
    if way is None:
        outcome = found["problem"] or "no way to train on these GPUs"
    elif not way["fits"]:
        outcome = f"does not fit, {way['total'] / GIB:.1f} GiB of a GPU"
    else:
        outcome = (
            f"{way['method']} {way['strategy']} fits, {way['total'] / GIB:.1f} GiB of a GPU with "
            f"checkpointing {way['gradient_checkpointing']}; {_step(way, found['train_hours'])}"
        )
    text = f"{settings}: {outcome}. {found['note']}"
    return f"The run file's\n\n{textwrap.fill(text.strip(), WIDTH, break_on_hyphens=False)}"


def _step(way: Mapping[str, Any], hours: float) -> str:
    return f"{way['step_seconds']:.2f} s a step, {_hours(hours)} in all"


def _recommendation(figures: Mapping[str, Any]) -> str:
    found = figures["recommendation"]
    if found is None:
        return ""
    lines = [
        "Recommended",
        "",
        *found["overrides"],
        f"{found['machines']} x {found['processes'] // found['machines']} processes (`dpo-dist "
        "launch` writes their numbers into its copy of that file);",
        f"micro-batches a step: {found['accumulation']}; {_step(found, found['train_hours'])}",
        "",
        f"Largest part: {found['largest']}, {found['largest_bytes'] / GIB:.1f} GiB; "
        f"{found['remedy']}.",
        f"Next cheaper: {found['cheaper']}.",
    ]
    if found["node_memory_bytes"]:
        lines.append(f"CPU memory per node: {found['node_memory_bytes'] / GIB:,.0f} GiB.")
    return "\n".join(lines)


def _generation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f"Sampling memory per GPU: weights {found['weights'] / GIB:.1f} GiB, KV cache "
        f"{found['kv_cache'] / GIB:.1f} GiB\n({found['kv_bytes_a_token'] / 1024:.0f} KiB per "
        f"token): {found['sequences_that_fit']:,} sequences at a time; max_num_seqs is "
        f"{found['max_num_seqs']}."
    )


def _hours_table(phases: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            phase["phase"],
            (
                Cell(_tokens(phase["tokens"])),
                Cell(_hours(phase["hours"])),
                Cell("measured" if phase["measured"] else "assumed"),
                Cell(phase["note"]),
            ),
        )
        for phase in phases
    ]
    return Table(("", "Tokens", "Time", "Rate", ""), tuple(rows))


def _judges(judges: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for bill in judges:
        tokens = bill["million_tokens_read"] + bill["million_tokens_written"] > 0
        read = f"{bill['million_tokens_read']:.1f} M / {bill['million_tokens_written']:.1f} M"
        cells = (
            Cell(f"{bill['requests']:,}"),
            Cell(read if tokens else ABSENT),
            *(
                Cell(_usd(bill["usd"][way]) if tokens else "no charge")
                for way in ("online", "batch")
            ),
            Cell(_usd(bill["max_usd"]) if bill["max_usd"] is not None else ABSENT),
            Cell(_judge_hours(bill) if tokens else ABSENT),
        )
        rows.append((f"{bill['phase']}: {bill['judge']}", cells))
    dates = {bill["prices_as_of"] for bill in judges} - {""}
    when = f"online (prices of {', '.join(sorted(dates))})" if dates else "online"
    headers = ("", "Requests", "Tokens read / written", when, "batch", "max_usd", "Time")
    return Table(headers, tuple(rows))


def _judge_hours(bill: Mapping[str, Any]) -> str:
    batch = bill["transport"] == "batch"
    return f"up to {bill['hours']:.0f} h (batch)" if batch else _hours(bill["hours"])


def _disk(disk: Mapping[str, float]) -> Table:
    rows = [(name, (Cell(_bytes(size)),)) for name, size in disk.items() if size]
    rows.append(("together", (Cell(_bytes(sum(disk.values()))),)))
    return Table(("", "At most"), tuple(rows))


def _usd(value: float | None) -> str:
    """An unknown price is no zero."""
    return UNKNOWN if value is None else f"${value:,.2f}"


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


def _tokens(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"
