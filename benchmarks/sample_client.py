"""The sample phase with a simulated engine: memory with 60,000 prompts, and time of a resume.

    python -m benchmarks.sample_client --rows FILE [--quick] [--json FILE]

The engine answers immediately with texts of the rows; everything else is the real phase: reading,
tokenization, journals, the ordered result. `client_rss_mb_60k` is the peak of its process, and
`of that imports` the memory of libraries and tokenizer before the phase starts. A second process
starts the phase again with all answers and without a manifest: `resume_seconds_120k` is the time in
which it finds them in the journal, `restart seconds` the time of the whole phase.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import MODEL, option_parser, publish
from dpo_dist.config.runfile import load_config
from dpo_dist.generation.engine import Completion, Request

PROMPTS = 60_000
ANSWER_TOKENS = 110


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL)
    options = parser.parse_args()
    prompts = 2_000 if options.quick else PROMPTS
    publish(client_figures(options.rows, options.model, prompts), options.json)


def client_figures(rows: Path, model: Path, prompts: int = PROMPTS) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = prepare(folder, rows, model, prompts)
        first = in_a_process(run_file, rows)
        out = folder / "runs" / "run" / "sample"
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["candidates"] == 2 * manifest["counts"]["kept"] > 0
        (out / "manifest.json").unlink()
        again = in_a_process(run_file, rows)
    assert again["answered"] == 0
    return {
        "client_rss_mb_60k": first["peak_mb"],
        "of that imports and tokenizer, MB": first["before_mb"],
        "phase seconds without the engine": first["seconds"],
        "resume_seconds_120k": again["scan_seconds"],
        "restart seconds": again["seconds"],
    }


def prepare(folder: Path, rows: Path, model: Path, prompts: int) -> Path:
    """A run on the rows' prompts, repeated under other ids up to the given number."""
    texts = [json.loads(line)["prompt"] for line in rows.open(encoding="utf-8")]
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(prompts):
            row = {"id": f"prompt-{number}", "prompt": texts[number % len(texts)]}
            file.write(json.dumps(row) + "\n")
    sections = {
        "run": {"name": "run", "output_dir": str(folder / "runs")},
        "model": {"base": str(model.resolve())},
        "sample": {"prompts": {"path": "prompts.jsonl"}, "engine": {"type": "hf"}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    return folder / "run.yaml"


def in_a_process(run_file: Path, rows: Path) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=do_the_phase, args=(run_file, rows, there)
    )
    process.start()
    figures: dict[str, float] = here.recv()
    process.join()
    return figures


class SimulatedEngine:
    """Answers immediately, with a row's text and a usual number of token ids."""

    identity, max_model_len = "simulated", 1024

    def __init__(self, rows: Path) -> None:
        lines = rows.open(encoding="utf-8")
        self._texts = [json.loads(line)["chosen"][-1]["content"][:520] for line in lines]
        self.answered = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            text = self._texts[self.answered % len(self._texts)]
            self.answered += 1
            # A new int for every token, as in real engines.
            tokens = tuple((7919 * n + self.answered) % 49_152 for n in range(ANSWER_TOKENS))
            yield Completion(request.id, text, tokens, "stop")

    def close(self) -> None: ...


def do_the_phase(run_file: Path, rows: Path, answer: Connection) -> None:
    from dpo_dist.data.chat import load_tokenizer
    from dpo_dist.phases import sample
    from dpo_dist.phases.pipeline import run_phase
    from dpo_dist.runs.run import Run
    from dpo_dist.storage import shards

    config = load_config(run_file)
    load_tokenizer(config.model.base)
    before, engine = peak_mb(), SimulatedEngine(rows)
    scans: list[float] = []

    class Timed(shards.Journals[Any]):
        def refresh(self) -> None:
            started = time.monotonic()
            super().refresh()
            scans.append(time.monotonic() - started)

    def build(*_: Sequence[Any], **__: Any) -> SimulatedEngine:
        return engine

    vars(sample).update(Journals=Timed, build_engine=build)
    started = time.monotonic()
    run_phase("sample", Run(config))
    answer.send(
        {
            "peak_mb": peak_mb(),
            "before_mb": before,
            "seconds": time.monotonic() - started,
            "scan_seconds": scans[0],
            "answered": engine.answered,
        }
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
