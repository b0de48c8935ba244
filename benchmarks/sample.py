"""How much of an engine's speed reaches the candidates: our client beside simpler ones.

    python -m benchmarks.sample --rows FILE [--quick] [--json FILE]

The prompts of real preference rows (.jsonl), two slots each (temperature 0.7 and 1.2), at most 128
tokens, on one vLLM engine: `loop` asks for one answer after the other, `chunks` hands over 64
requests and waits for all of them, `ours` keeps the engine full. Then transformers in batches of
16 (`hf`). `loop` and `hf` answer a part of the prompts, for their time. Rates leave out the
engine's start. `occupancy`: requests that the engine was at work on, of those that it can take,
averaged over its steps until the last ones had been handed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.figures import option_parser, publish
from benchmarks.train import MODEL
from dpo_dist.config import HfEngine, Sampling, VllmEngine
from dpo_dist.console import quiet_libraries
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.generation.engine import Completion, Request, build_engine
from dpo_dist.records import Message

SLOTS = (Sampling(temperature=0.7), Sampling(temperature=1.2))
MAX_TOKENS, ROOM, CHUNK, SEQUENCES = 128, 1024, 64, 64


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL)
    options = parser.parse_args()
    quiet_libraries()
    requests = read_requests(options.rows, options.model, 32 if options.quick else 128)
    few = requests[: 2 * (2 if options.quick else 8)]
    figures = vllm_figures(str(options.model), requests, few)
    engine = build_engine(
        HfEngine(type="hf", max_model_len=ROOM, batch_size=16),
        str(options.model),
        dtype="bfloat16",
        seed=0,
    )
    figures |= rates("hf", engine.generate, requests[: 2 * (8 if options.quick else 32)])
    engine.close()
    ours = figures["ours: candidates per second"]
    figures["ratio_to_loop"] = ours / figures["loop: candidates per second"]
    figures["ratio_to_chunks"] = ours / figures["chunks: candidates per second"]
    publish(figures, options.json)


def vllm_figures(
    model: str, requests: Sequence[Request], few: Sequence[Request]
) -> dict[str, float]:
    config = VllmEngine(type="vllm", max_model_len=ROOM, max_num_seqs=SEQUENCES)
    engine: Any = build_engine(config, model, dtype="bfloat16", seed=0)
    core = engine._llm.llm_engine
    list(engine.generate(few[:2]))  # what is done once: kernels, caches

    def one_by_one(asked: Iterable[Request]) -> Iterable[Completion]:
        for request in asked:
            yield from engine.generate([request])

    def in_chunks(asked: Iterable[Request]) -> Iterable[Completion]:
        waiting = iter(asked)
        while chunk := list(islice(waiting, CHUNK)):
            yield from engine.generate(chunk)

    figures = rates("loop", one_by_one, few)
    for name, answer in (("chunks", in_chunks), ("ours", engine.generate)) * 2:
        core.reset_prefix_cache()
        running = watch(core)
        found = rates(name, answer, requests)
        core.step = running.pop("step")
        found[f"{name}: occupancy"] = occupancy(running["counts"], running["waiting"])
        for key, value in found.items():  # of two rounds, the better one
            figures[key] = max(value, figures.get(key, 0.0))
    engine.close()
    return figures


def watch(core: Any) -> dict[str, Any]:
    """Count, after every step of the engine, the requests at work and those that wait."""
    scheduler = core.engine_core.engine_core.scheduler
    seen: dict[str, Any] = {"step": core.step, "counts": [], "waiting": []}

    def step() -> Any:
        outputs = seen["step"]()
        seen["counts"].append(len(scheduler.running))
        seen["waiting"].append(len(scheduler.waiting))
        return outputs

    core.step = step
    return seen


def occupancy(counts: Sequence[int], waiting: Sequence[int]) -> float:
    """Of the steps up to the last one after which a request waited, in any order of waves."""
    last = max((n for n, left in enumerate(waiting) if left), default=len(counts) - 1)
    return sum(counts[: last + 1]) / (last + 1) / SEQUENCES


def rates(
    name: str, answer: Callable[[Sequence[Request]], Iterable[Completion]], asked: Sequence[Request]
) -> dict[str, float]:
    started = time.monotonic()
    answers = list(answer(asked))
    seconds = time.monotonic() - started
    assert len(answers) == len(asked)
    return {
        f"{name}: candidates per second": len(answers) / seconds,
        f"{name}: tokens per second": sum(len(a.token_ids) for a in answers) / seconds,
    }


def read_requests(rows: Path, model: Path, prompts: int) -> list[Request]:
    """Both slots of the first prompts that leave room for an answer, side by side."""
    tokenizer = load_tokenizer(str(model), trust_remote_code=False)
    asked = dict.fromkeys(json.loads(line)["prompt"] for line in rows.open(encoding="utf-8"))
    requests: list[Request] = []
    for prompt in asked:
        ids = tuple(prompt_ids(tokenizer, [Message(role="user", content=prompt)]))
        if len(ids) + MAX_TOKENS <= ROOM:
            requests += [
                Request(f"{len(requests)}/{slot}", ids, sampling, MAX_TOKENS)
                for slot, sampling in enumerate(SLOTS)
            ]
        if len(requests) >= 2 * prompts:
            break
    return requests


if __name__ == "__main__":
    main()
