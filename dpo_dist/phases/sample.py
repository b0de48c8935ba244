"""sample: the policy, at first the SFT model, answers every prompt once per slot, all slots in one
pass."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.config import Config, EngineConfig, Sample, Slot, required
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import disjoint
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import DataError
from dpo_dist.generation.engine import Completion, Request, build_engine
from dpo_dist.generation.sampling import answer_all, engine_seed
from dpo_dist.phases.held_out import held_out_prompts
from dpo_dist.phases.rounds import part_identity, round_prompts
from dpo_dist.runs.directories import sampling_seed
from dpo_dist.runs.weights import start_weights
from dpo_dist.storage.artifacts import (
    PhaseDirectory,
    read_json,
    read_records,
    write_json,
    write_records,
)
from dpo_dist.storage.records import Candidate, Message, Prompt
from dpo_dist.storage.shards import Journals
from dpo_dist.system.ranks import Shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECTIONS = ("sample",)
JOURNALS = "candidates"


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the prompts and the model that answers them."""
    sample = required(config.sample)
    return {
        "prompts": source_identity(sample.prompts),
        "weights": start_weights(config).identity(),
        **part_identity(config),
    }


def engine(config: Config) -> EngineConfig:
    """What answers."""
    return required(config.sample).engine


def expected(config: Config, shard: Shard) -> int:
    """How many answers the shard asks for, those to prompts that are too long included."""
    sample = required(config.sample)
    return len(sample.slots) * shard.size(sum(1 for _ in round_prompts(config)))


def run(config: Config, out: PhaseDirectory) -> dict[str, Any] | None:
    """Generate what the journals lack of this shard, then write `candidates.jsonl` in the prompts'
    order. None: other shards are still at it."""
    prompts = round_prompts(config)
    write_records(out.path / "prompts.jsonl", disjoint(prompts, held_out_prompts(config)))
    with Journals(out, JOURNALS, Candidate, _key) as journals:
        _generate(config, _tokenized(config, out), out, journals)
        journals.refresh()
        return _collect(config, out, journals)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt as token ids, one sequence a slot; arrays, since there may be many prompts."""

    id: str
    ids: tuple[array[int], ...]


@dataclass(frozen=True)
class _Order:
    """The names of all requests in the prompts' order, and how many prompts were too long."""

    names: list[str]
    too_long: int


def request_id(prompt_id: str, slot: int) -> str:
    """The name of a request; unique, since slot numbers hold no slash."""
    return f"{slot}/{prompt_id}"


def slot_messages(prompt: Prompt, slot: Slot) -> tuple[Message, ...]:
    """The conversation as a slot asks it: its system message and examples put in."""
    messages = list(prompt.messages)
    if slot.system is not None:
        messages = [m for m in messages if m.role != "system"]
        messages.insert(0, Message(role="system", content=slot.system))
    start = 1 if messages[0].role == "system" else 0
    return (*messages[:start], *slot.few_shot, *messages[start:])


def _tokenized(config: Config, out: PhaseDirectory) -> list[_Asked]:
    """The shard's prompts that leave room for all their answers."""
    tokenizer = _tokenizer(config)
    prompts = read_records(out.path / "prompts.jsonl", Prompt)
    own = (p for number, p in enumerate(prompts) if out.shard.holds(number))
    return [asked for p in own if (asked := _fitting(p, tokenizer, required(config.sample)))]


def _fitting(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> _Asked | None:
    """The prompt as every slot asks it; None where one of them would not fit the engine."""
    asked: dict[tuple[Message, ...], array[int]] = {}
    for slot in sample.slots:
        messages = slot_messages(prompt, slot)
        if messages not in asked:
            asked[messages] = array("I", prompt_ids(tokenizer, messages))
        if len(asked[messages]) + _max_tokens(sample, slot) > sample.engine.max_model_len:
            return None
    return _Asked(prompt.id, tuple(asked[slot_messages(prompt, slot)] for slot in sample.slots))


def _generate(
    config: Config, queue: Sequence[_Asked], out: PhaseDirectory, journals: Journals[Candidate]
) -> None:
    """Answer what the journals lack, and leave behind how fast it went."""
    sample, weights = required(config.sample), start_weights(config)
    names = (request_id(asked.id, number) for asked in queue for number in range(len(asked.ids)))
    total, done = len(queue) * len(sample.slots), sum(name in journals for name in names)
    if done == total:
        return
    started = time.monotonic()
    answering = build_engine(
        sample.engine,
        weights.model,
        dtype=config.model.dtype,
        seed=engine_seed(sampling_seed(config), len(journals), out.shard),
        adapters=[weights.adapter] if weights.adapter else [],
        seeded=sample.slots[0].seed is not None,
        trust_remote_code=config.model.trust_remote_code,
    )
    ready = time.monotonic()

    def record(completion: Completion) -> Candidate:
        number, prompt_id = completion.id.split("/", 1)
        return Candidate(
            prompt_id=prompt_id,
            slot=int(number),
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            settings=sample.slots[int(number)].model_dump(mode="json"),
            engine=answering.identity,
        )

    requests = _missing(queue, sample, weights.adapter, journals)
    try:
        pace = answer_all(
            answering, requests, record, journals.own, name="sample", done=done, total=total
        )
    finally:
        answering.close()
    seconds = time.monotonic() - ready
    write_json(
        out.path / f"pace-{out.shard.index}-of-{out.shard.count}.json",
        {
            "engine_start_seconds": round(ready - started, 2),
            "first_candidate_seconds": round(pace.first_seconds, 2),
            "candidates_per_second": round((total - done) / seconds, 3),
            "tokens_per_second": round(pace.tokens / seconds, 1),
        },
    )


def _missing(
    queue: Sequence[_Asked], sample: Sample, adapter: Path | None, journals: Journals[Candidate]
) -> Iterator[Request]:
    """What is still to be asked; a prompt's slots side by side, so that the second finds the prompt
    in the prefix cache."""
    for asked in queue:
        for number, slot in enumerate(sample.slots):
            name = request_id(asked.id, number)
            if name not in journals:
                yield Request(
                    id=name,
                    prompt_ids=tuple(asked.ids[number]),
                    sampling=slot,
                    max_tokens=_max_tokens(sample, slot),
                    adapter=adapter,
                    seed=None if slot.seed is None else _noise(slot.seed, name),
                )


def _noise(seed: int, name: str) -> int:
    """The seed of one request, 63 bits."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _order(config: Config, out: PhaseDirectory, journals: Journals[Candidate]) -> _Order | None:
    """All answers in the prompts' order; None while one is still to be drawn, by any shard.

    Raises `DataError` where no prompt fits the engine.
    """
    sample = required(config.sample)
    tokenizer = None
    names: list[str] = []
    too_long = 0
    for prompt in read_records(out.path / "prompts.jsonl", Prompt):
        asked = [request_id(prompt.id, number) for number in range(len(sample.slots))]
        if all(name in journals for name in asked):
            names += asked
            continue
        tokenizer = tokenizer or _tokenizer(config)  # seconds to load, and mostly not needed
        if _fitting(prompt, tokenizer, sample):
            return None
        too_long += 1
    if not names:
        room = sample.engine.max_model_len
        raise DataError(f"no prompt leaves room for an answer within max_model_len {room}")
    return _Order(names, too_long)


def _collect(
    config: Config, out: PhaseDirectory, journals: Journals[Candidate]
) -> dict[str, Any] | None:
    """Write the candidates in the prompts' order, once there is nothing left to ask."""
    order = _order(config, out, journals)
    if order is None:
        return None
    cut_off, engines = 0, set[str]()

    def candidates() -> Iterator[Candidate]:
        nonlocal cut_off
        for candidate in journals.read(order.names):
            cut_off += candidate.finish_reason == "length"
            engines.add(candidate.engine)
            yield candidate

    write_records(out.path / "candidates.jsonl", candidates())
    drawn = len(order.names)
    kept = drawn // len(required(config.sample).slots)
    dropped = {"prompt_too_long": order.too_long}
    return {
        "counts": {"in": kept + order.too_long, "kept": kept, "dropped": dropped},
        "candidates": drawn,
        "cut_off": cut_off,
        "engines": sorted(engines),
        **_pace(out),
    }


def _pace(out: PhaseDirectory) -> dict[str, float]:
    """How fast the shards were together: rates added up, waits of the slowest."""
    paces = [read_json(p) for p in out.path.glob(f"pace-*-of-{out.shard.count}.json")]
    return {
        key: round(sum(values) if key.endswith("per_second") else max(values), 3)
        for key in (paces[0] if paces else ())
        if (values := [pace[key] for pace in paces])
    }


def _max_tokens(sample: Sample, slot: Slot) -> int:
    return slot.max_tokens or sample.max_new_tokens


def _tokenizer(config: Config) -> PreTrainedTokenizerBase:
    model = start_weights(config).model
    return load_tokenizer(model, trust_remote_code=config.model.trust_remote_code)


def _key(candidate: Candidate) -> str:
    return request_id(candidate.prompt_id, candidate.slot)
