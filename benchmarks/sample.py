"""Speed of the sampling client compared with simpler clients of the same engine.

    python -m benchmarks.sample --rows FILE [--max-tokens N] [--prompts N] [--quick]
                                [--json FILE] [--plot FILE.png]

256 prompts of real preference rows (.jsonl), two slots (temperature 0.7 and 1.2), at most 128
tokens, SmolLM2 in bfloat16. Clients of one vLLM engine with 64 sequences: `loop` calls
`LLM.generate` twice per prompt, one prompt after the other; `chunks` passes it 64 requests and
waits for all answers; `ours` keeps the engine full. Then transformers in batches of 16 (`hf`).
`loop` and `hf` answer only a part of the prompts, because they are slow; `chunks` and `ours`
alternate twice, and figures are medians. Rates exclude the engine's start. `occupancy` is the mean
share of the 64 sequences that are running, until the last request has been passed to the engine;
the plot shows it for every step. `benchmarks.sample_client` measures the client's memory and
resume.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.figures import MODEL, option_parser, publish
from benchmarks.sample_client import PROMPTS, client_figures
from dpo_dist.config import HfEngine, Sampling, VllmEngine
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Request
from dpo_dist.storage.records import Message
from dpo_dist.system.console import quiet_libraries

SLOTS = (Sampling(temperature=0.7), Sampling(temperature=1.2))
MAX_MODEL_LEN, CHUNK, SEQUENCES = 1024, 64, 64

Answer = Callable[[Sequence[Request]], Iterable[Sequence[int]]]  # token ids of every answer


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--plot", type=Path, help="write a plot of the occupancy, .png")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=256)
    options = parser.parse_args()
    quiet_libraries()
    figures = client_figures(options.rows, options.model, 2_000 if options.quick else PROMPTS)
    prompts = 32 if options.quick else options.prompts
    requests = read_requests(options.rows, options.model, prompts, options.max_tokens)
    few = requests[: 2 * (2 if options.quick else 8)]
    figures |= vllm_figures(str(options.model), requests, few, options.plot)
    hf = build_engine(
        HfEngine(type="hf", max_model_len=MAX_MODEL_LEN, batch_size=16),
        str(options.model),
        dtype="bfloat16",
        seed=0,
    )
    figures |= rates(
        "hf",
        lambda asked: (answer.token_ids for answer in hf.generate(asked)),
        requests[: 2 * (8 if options.quick else 32)],
    )
    hf.close()
    ours = figures["ours: candidates per second"]
    figures["ratio_to_loop"] = ours / figures["loop: candidates per second"]
    figures["ratio_to_chunks"] = ours / figures["chunks: candidates per second"]
    figures["occupancy"] = figures["ours: occupancy"]
    publish(figures, options.json)


def vllm_figures(
    model: str, requests: Sequence[Request], few: Sequence[Request], plot: Path | None
) -> dict[str, float]:
    config = VllmEngine(type="vllm", max_model_len=MAX_MODEL_LEN, max_num_seqs=SEQUENCES)
    engine: Any = build_engine(config, model, dtype="bfloat16", seed=0)
    llm = engine._llm
    llm_generate = plain_generate(llm)
    list(llm_generate(few[:2]))  # warm-up: kernels, caches

    def loop(asked: Sequence[Request]) -> Iterable[Sequence[int]]:
        for request in asked:
            yield from llm_generate([request])

    def chunks(asked: Sequence[Request]) -> Iterable[Sequence[int]]:
        waiting = iter(asked)
        while chunk := list(islice(waiting, CHUNK)):
            yield from llm_generate(chunk)

    def ours(asked: Sequence[Request]) -> Iterable[Sequence[int]]:
        return (answer.token_ids for answer in engine.generate(asked))

    figures = rates("loop", loop, few)
    rounds: dict[str, list[float]] = defaultdict(list)
    curves: dict[str, list[int]] = {}
    for name, answer in (("chunks", chunks), ("ours", ours)) * 2:
        llm.llm_engine.reset_prefix_cache()
        recorded = record_steps(llm.llm_engine)
        for key, value in rates(name, answer, requests).items():
            rounds[key].append(value)
        llm.llm_engine.step = recorded.pop("step")
        rounds[f"{name}: occupancy"].append(occupancy(recorded["running"], recorded["unfinished"]))
        curves[name] = recorded["running"]
    engine.close()
    if plot is not None:
        plot_occupancy(curves, plot)
    return figures | {key: statistics.median(values) for key, values in rounds.items()}


def plain_generate(llm: Any) -> Answer:
    """`LLM.generate`, which returns all answers at once."""
    from vllm import SamplingParams

    def generate(asked: Sequence[Request]) -> Iterable[Sequence[int]]:
        answers = llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in asked],
            [
                SamplingParams(
                    temperature=request.sampling.temperature, max_tokens=request.max_tokens
                )
                for request in asked
            ],
            use_tqdm=False,
        )
        return [answer.outputs[0].token_ids for answer in answers]

    return generate


def record_steps(core: Any) -> dict[str, Any]:
    """Record, after every step of the engine, how many requests are running, and how many are
    unfinished (running or waiting)."""
    scheduler = core.engine_core.engine_core.scheduler
    recorded: dict[str, Any] = {"step": core.step, "running": [], "unfinished": []}

    def step() -> Any:
        outputs = recorded["step"]()
        recorded["running"].append(len(scheduler.running))
        recorded["unfinished"].append(len(scheduler.running) + len(scheduler.waiting))
        return outputs

    core.step = step
    return recorded


def occupancy(running: Sequence[int], unfinished: Sequence[int]) -> float:
    """The mean share of running sequences, up to the last step after which the engine had enough
    unfinished requests to be full: no client can fill the steps after it."""
    last = max(n for n, left in enumerate(unfinished) if left >= SEQUENCES)
    return sum(running[: last + 1]) / (last + 1) / SEQUENCES


def rates(name: str, answer: Answer, asked: Sequence[Request]) -> dict[str, float]:
    started = time.monotonic()
    first = 0.0
    tokens: list[int] = []
    for token_ids in answer(asked):
        first = first or time.monotonic() - started
        tokens.append(len(token_ids))
    seconds = time.monotonic() - started
    assert len(tokens) == len(asked)
    return {
        f"{name}: candidates per second": len(tokens) / seconds,
        f"{name}: tokens per second": sum(tokens) / seconds,
        f"{name}: seconds to the first record": first,
    }


def plot_occupancy(curves: dict[str, list[int]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    for name, running in curves.items():
        axes.plot([100 * n / SEQUENCES for n in running], label=name, linewidth=1)
    axes.set(xlabel="engine step", ylabel="running requests (% of max)", ylim=(0, 105))
    axes.legend(loc="lower left")
    figure.savefig(target, dpi=120)


def read_requests(rows: Path, model: Path, prompts: int, max_tokens: int) -> list[Request]:
    """Requests for both slots of the first prompts that leave room for an answer."""
    tokenizer = load_tokenizer(str(model))
    asked = dict.fromkeys(json.loads(line)["prompt"] for line in rows.open(encoding="utf-8"))
    requests: list[Request] = []
    for prompt in asked:
        ids = tuple(prompt_ids(tokenizer, [Message(role="user", content=prompt)]))
        if len(ids) + max_tokens <= MAX_MODEL_LEN:
            requests += [
                Request(f"{len(requests)}/{slot}", ids, sampling, max_tokens)
                for slot, sampling in enumerate(SLOTS)
            ]
        if len(requests) >= 2 * prompts:
            break
    return requests


if __name__ == "__main__":
    main()
