"""Measures the host memory of each rank while a LoRA training loads and trains, by ZeRO stage.

    python -m benchmarks.sharded_memory [--quick] [--json FILE]

The model is a random Llama with 0.4 B weights (`--quick`: 0.05 B), in float32, since several CPU
processes train in it. Each line is a training of two steps on 1, 2 or 4 connected CPU processes.
The figures are GiB above the memory that the process has before it loads weights, of the rank that
has the most: at the peak of loading, and at the peak of everything. Under ZeRO-3 both fall with the
number of ranks, because no rank ever holds a whole model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Event, Thread

from benchmarks.figures import option_parser, publish
from benchmarks.plan_memory import ALLOCATOR, CONFIGS, random_model
from benchmarks.plan_memory_block import Block, build, memory, rows

GIB = 2**30
# The embedding has about 5 % of the weights then, as in a model of 8 B.
VOCABULARY = 16384


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--rank":
        run_rank(Block(**json.loads(sys.argv[2])))
        return
    options = option_parser(__doc__).parse_args()
    layers, hidden = (8, 512) if options.quick else (20, 1280)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(
            Path(folder) / "model", layers=layers, hidden=hidden, half=True, vocabulary=VOCABULARY
        )
        for processes in (1, 2) if options.quick else (1, 2, 4):
            for stage in (2, 3):
                out = Path(folder) / f"zero{stage}-{processes}"
                loading, peak = measure(str(model), out, stage, processes)
                name = f"ZeRO-{stage}, {processes} ranks"
                print(f"{name}: loading {loading:.2f} GiB, peak {peak:.2f} GiB", flush=True)
                figures |= {f"{name}: loading GiB": loading, f"{name}: peak GiB": peak}
    for kind in ("loading", "peak"):
        two, three = (figures[f"ZeRO-{stage}, 2 ranks: {kind} GiB"] for stage in (2, 3))
        figures[f"{kind}: ZeRO-3 / ZeRO-2 on 2 ranks"] = three / two
    publish(figures, options.json)


def measure(model: str, out: Path, stage: int, processes: int) -> tuple[float, float]:
    """(GiB at the peak of loading, at the peak of the training) of the rank with the most."""
    config = str(CONFIGS / f"cpu_zero{stage}.yaml")
    block = Block(
        model,
        model,
        str(out),
        "lora",
        "none",
        config,
        processes,
        prompt=40,
        completion=40,
    )
    rows(block)
    words = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", config),
        *("--num_processes", str(processes), "-m", "benchmarks.sharded_memory"),
        *("--rank", json.dumps(vars(block))),
    ]
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = [json.loads(path.read_text()) for path in out.glob("rank-*.json")]
    assert len(found) == processes
    return max(f["loading"] for f in found) / GIB, max(f["peak"] for f in found) / GIB


def run_rank(block: Block) -> None:
    """Train on one rank, and write its peaks in bytes."""
    before = memory("RssAnon")
    with Peak() as peak:
        trainer = build(block)
        loading = peak.bytes - before
        if block.accelerate_config.endswith("cpu_zero3.yaml"):
            weights = list(trainer.model.parameters())
            assert all(weight.numel() == 0 for weight in weights if hasattr(weight, "ds_id"))
        trainer.train()
    path = Path(block.out) / f"rank-{os.environ['RANK']}.json"
    path.write_text(json.dumps({"loading": loading, "peak": peak.bytes - before}))


class Peak:
    """The largest amount of anonymous memory while it is open. The pages of the files with the
    weights are not counted: the kernel shares them between ranks, and drops them if it must."""

    def __enter__(self) -> Peak:
        self.bytes = memory("RssAnon")
        self._ended = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, memory("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


if __name__ == "__main__":
    main()
