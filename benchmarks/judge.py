"""Request rate, memory, times and forecast costs of a judge.

    python -m benchmarks.judge [--quick] [--json FILE]

The tests' loopback server replaces the API, in a separate process.

- rate_fraction: the rate of answers from the first request to the last answer, with 2 s per
  request and 50 requests in flight, as a share of the ideal 25 per second;
  overbooked_rate_fraction: the same for a client with `concurrency: 100` and an account that
  allows 50.
- The judge phase on 60,000 pairs in both orders, through batches: its peak memory, the seconds from
  the first finished batch to the labels, the seconds of a second start that finds all ballots in
  the journal but no labels (restart_seconds), and the part of them for the journal
  (resume_seconds).
- requests_paid_twice: by a phase with 8 requests in flight that was killed and started again.
- Costs are forecasts at the package's prices, for answers of 1,200 characters.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import option_parser, publish
from dpo_dist.config import ClaudeConfig
from dpo_dist.config.runfile import load_config
from dpo_dist.judging.build import build_judge
from dpo_dist.judging.judge import BALLOTS, Comparison
from dpo_dist.judging.panel import judge_all
from dpo_dist.judging.spend import Ledger, read_prices
from dpo_dist.storage.artifacts import Journal, read_records, write_json, write_records
from dpo_dist.storage.records import Ballot, Candidate, Message, Prompt
from tests.anthropic_server import KEY, serve

LATENCY, LIMIT = 2.0, 50
MODELS = ("claude-opus-4-7", "claude-sonnet-5-5", "claude-haiku-5-5")
RUBRIC = Path("recipes/incident_triage/rubric.md")
# The share of pairs on which both orders agree, for a strong judge (MT-Bench: GPT-4 65 %).
CONSISTENT = 0.65
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


def main() -> None:
    options = option_parser(__doc__).parse_args()
    os.environ["ANTHROPIC_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            **rates(Path(folder), 150 if options.quick else 1000),
            **large(Path(folder), 1000 if options.quick else 60_000),
            **killed(Path(folder)),
            **costs(),
        }
    publish(figures, options.json)


def rates(folder: Path, pairs: int) -> dict[str, float]:
    figures = {}
    for name, concurrency in (("rate_fraction", LIMIT), ("overbooked_rate_fraction", 2 * LIMIT)):
        with server(latency=LATENCY, limit=LIMIT) as api:
            run_file = prepare(folder / name, pairs // 2, api.url, concurrency=concurrency)
            phase(run_file)
            seen = api.figures()
        seconds = seen["last_at"] - seen["first_at"]
        figures[name] = seen["answered"] / seconds / (LIMIT / LATENCY)
    return figures


def large(folder: Path, pairs: int) -> dict[str, float]:
    with server() as api:
        run_file = prepare(folder / "large", pairs, api.url, transport="batch")
        first = phase(run_file)
        ended = api.figures()["ended_at"]
        out = folder / "large" / "runs" / "run" / "judge"
        for name in ("manifest.json", "verdicts.jsonl"):
            (out / name).unlink()
        again = phase(run_file)
        resumed = resume(run_file, out / BALLOTS)
    return {
        "ingest_peak_rss_mb": first["peak_mb"],
        "ingest_seconds_per_10k": (first["finished_at"] - ended) / (2 * pairs / 10_000),
        "send_seconds_per_10k": (ended - first["started_at"]) / (2 * pairs / 10_000),
        "resume_seconds": resumed,
        "restart_seconds": again["seconds"],
    }


def resume(run_file: Path, journal: Path) -> float:
    """The seconds in which all comparisons are found in a journal."""
    config = load_config(run_file)
    assert config.judge is not None
    read = read_records(run_file.parent / "runs" / "run" / "sample" / "candidates.jsonl", Candidate)
    prompts = {p.id: p for p in read_records(journal.parents[1] / "sample/prompts.jsonl", Prompt)}
    comparisons = [
        Comparison(prompts[a.prompt_id], "slot-0", "slot-1", a.text, b.text)
        for a, b in zip(read, read, strict=True)
    ]
    judge = build_judge(config.judge.judge, journal.parent)
    started = time.monotonic()
    with Journal(journal, Ballot) as ballots:
        judged = judge_all(
            judge, comparisons, ballots, ledger=Ledger(), both_orders=True, seed=config.run.seed
        )
    seconds = time.monotonic() - started
    assert {verdict.outcome for verdict in judged.verdicts} == {"preferred"}
    return seconds


def killed(folder: Path, pairs: int = 200) -> dict[str, float]:
    with server(latency=0.02) as api:
        run_file = prepare(folder / "killed", pairs, api.url, concurrency=8)
        journal = folder / "killed" / "runs" / "run" / "judge" / "ballots.jsonl"
        process = subprocess.Popen(command(run_file), stderr=subprocess.DEVNULL)
        while not journal.exists() or journal.read_bytes().count(b"\n") < pairs:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        phase(run_file)
        return {"requests_paid_twice": api.figures()["answered"] - 2 * pairs}


def costs() -> dict[str, float]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="x" * 600),))
    pair = [Comparison(prompt, "a", "b", "y" * 1200, "z" * 1200)] * 2
    figures = {}
    table = read_prices(None)
    for model in MODELS:
        for transport in ("online", "batch"):
            config = ClaudeConfig(type="claude", model=model, rubric=RUBRIC, transport=transport)
            usage = build_judge(config, Path()).expected_usage(pair * 1000)
            usd = table.models[model].of(usage) / CONSISTENT
            figures[f"usd_per_1k_consistent: {model}, {transport}"] = usd
    return figures


def prepare(folder: Path, pairs: int, url: str, **judge: Any) -> Path:
    """A run with a complete sample phase; one answer to each prompt contains GOOD."""
    folder.mkdir()
    (folder / "rubric.md").write_text("Prefer GOOD.")
    run_file = folder / "run.yaml"
    settings = {"type": "claude", "model": MODELS[0], "rubric": "rubric.md", "base_url": url}
    sections = {
        "run": {"name": "run", "output_dir": str(folder / "runs")},
        "model": {"base": "unused"},
        "sample": {"prompts": {"path": "unused.jsonl"}, "engine": {"type": "hf"}},
        # No canaries: the server only looks for GOOD, and would fail `other_prompt`.
        "judge": {"judge": settings | judge, "canaries": None},
    }
    run_file.write_text(yaml.safe_dump(sections))
    sample = folder / "runs" / "run" / "sample"
    prompts = (
        Prompt(
            id=f"p{n}",
            messages=(Message(role="user", content=f"Question {n}: " + "what is it? " * 20),),
        )
        for n in range(pairs)
    )
    write_records(sample / "prompts.jsonl", prompts)
    write_records(sample / "candidates.jsonl", candidates(pairs))
    write_json(sample / "manifest.json", {})
    return run_file


def candidates(pairs: int) -> Iterator[Candidate]:
    for n in range(pairs):
        for slot in (0, 1):
            good = slot == n % 2
            draw = random.Random(2 * n + slot)
            words = " ".join(f"{draw.choice(WORDS)}{draw.randrange(100)}" for _ in range(90)) + " "
            yield Candidate(
                prompt_id=f"p{n}",
                slot=slot,
                text=words + ("GOOD" if good else ""),
                token_ids=tuple(range(1000, 1150)),
                finish_reason="stop",
                settings={},
                engine="simulated",
            )


def command(run_file: Path) -> list[str]:
    return [sys.executable, "-m", "dpo_dist", "judge", str(run_file), "--yes"]


def phase(run_file: Path) -> dict[str, float]:
    """Run the judge phase; returns its times (seconds since the epoch) and its peak memory."""
    started = time.time()
    pid = os.posix_spawn(sys.executable, command(run_file), os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"the judge phase ended with {status}")
    return {
        "started_at": started,
        "finished_at": time.time(),
        "seconds": time.time() - started,
        "peak_mb": usage.ru_maxrss * resource.getpagesize() / 4096 / 1024,
    }


class Api:
    """The server in another process."""

    def __init__(self, url: str, pipe: Connection) -> None:
        self.url = url
        self._pipe = pipe

    def figures(self) -> dict[str, float]:
        self._pipe.send("figures")
        found: dict[str, float] = json.loads(self._pipe.recv())
        return found


@contextmanager
def server(**settings: float) -> Iterator[Api]:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
    process.start()
    try:
        yield Api(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, settings: dict[str, float]) -> None:
    with serve() as server:
        for name, value in settings.items():
            setattr(server, name, value)
        pipe.send(server.url)
        while pipe.recv():
            pipe.send(
                json.dumps(
                    {
                        "answered": server.answered,
                        "first_at": server.first_at,
                        "last_at": server.last_at,
                        "ended_at": server.batches.first_download,
                    }
                )
            )


if __name__ == "__main__":
    main()
