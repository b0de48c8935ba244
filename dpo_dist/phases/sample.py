"""sample: the policy, at first the SFT model, answers every prompt once per slot, both slots in one
pass."""

from __future__ import annotations

import time
from typing import Any

from dpo_dist.artifacts import PhaseDirectory, write_records
from dpo_dist.config import Config, Slot
from dpo_dist.console import warn
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import check_disjoint
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import DataError
from dpo_dist.generation.engine import Completion, Request, build_engine
from dpo_dist.generation.sampling import answer_all
from dpo_dist.phases.held_out import held_out_prompts
from dpo_dist.phases.rounds import part_identity, round_prompts
from dpo_dist.phases.runs import sampling_seed, start_weights
from dpo_dist.records import Candidate, Message, Prompt

SECTIONS = ("sample",)
CUT_OFF_WARNING = 0.2  # share of answers that hit max_tokens


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the prompts and the model that answers them."""
    assert config.sample is not None
    return {
        "prompts": source_identity(config.sample.prompts),
        "weights": start_weights(config).identity(),
        **part_identity(config),
    }


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Generate what the journal lacks, then write `candidates.jsonl` in the prompts' order."""
    assert config.sample is not None
    prompts = round_prompts(config)
    check_disjoint(prompts, held_out_prompts(config))
    requests, too_long = _requests(config, prompts)
    write_records(out.path / "prompts.jsonl", prompts)
    with out.journal("candidates.journal.jsonl", Candidate) as journal:
        done = {request_id(c.prompt_id, c.slot): c for c in journal.read()}
        missing = [request for request in requests if request.id not in done]
        speed: dict[str, Any] = {}
        if missing:
            speed = _generate(config, missing, journal, len(done))
        candidates = {request_id(c.prompt_id, c.slot): c for c in journal.read()}
    ordered = [candidates[request.id] for request in requests]
    write_records(out.path / "candidates.jsonl", ordered)
    cut_off = sum(candidate.finish_reason == "length" for candidate in ordered)
    if cut_off > CUT_OFF_WARNING * len(ordered):
        warn(f"{cut_off} of {len(ordered)} answers were cut off; raise sample.max_new_tokens")
    kept = len(ordered) // len(config.sample.slots)
    counts = {"in": len(prompts), "kept": kept, "dropped": {"prompt_too_long": too_long}}
    engine = ordered[0].engine if ordered else None
    return {
        "counts": counts,
        "candidates": len(ordered),
        "cut_off": cut_off,
        "engine": engine,
        **speed,
    }


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


def _requests(config: Config, prompts: list[Prompt]) -> tuple[list[Request], int]:
    """One request per prompt and slot, a prompt's slots side by side so that the second finds
    the prompt in the prefix cache; and the number of prompts too long for the engine."""
    assert config.sample is not None
    sample = config.sample
    weights = start_weights(config)
    tokenizer = load_tokenizer(weights.model, trust_remote_code=config.model.trust_remote_code)
    requests: list[Request] = []
    too_long = 0
    for prompt in prompts:
        group = [
            Request(
                id=request_id(prompt.id, number),
                prompt_ids=tuple(prompt_ids(tokenizer, slot_messages(prompt, slot))),
                sampling=slot,
                max_tokens=slot.max_tokens or sample.max_new_tokens,
                adapter=weights.adapter,
            )
            for number, slot in enumerate(sample.slots)
        ]
        room = sample.engine.max_model_len
        if all(len(request.prompt_ids) + request.max_tokens <= room for request in group):
            requests += group
        else:
            too_long += 1
    if not requests:
        raise DataError(
            f"no prompt leaves room for its answer within max_model_len "
            f"{sample.engine.max_model_len}"
        )
    return requests, too_long


def _generate(config: Config, missing: list[Request], journal: Any, done: int) -> dict[str, Any]:
    assert config.sample is not None
    slots = config.sample.slots
    weights = start_weights(config)
    started = time.monotonic()
    engine = build_engine(
        config.sample.engine,
        weights.model,
        dtype=config.model.dtype,
        # A resumed run must not draw the noise again that its first part drew.
        seed=sampling_seed(config) + done,
        adapters=[weights.adapter] if weights.adapter else [],
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
            settings=slots[int(number)].model_dump(mode="json"),
            engine=engine.identity,
        )

    try:
        pace = answer_all(engine, missing, record, journal, name="sample", done=done)
    finally:
        engine.close()
    seconds = time.monotonic() - ready
    return {
        "engine_start_seconds": round(ready - started, 2),
        "candidates_per_second": round(len(missing) / seconds, 3),
        "first_candidate_seconds": round(pace.first_seconds, 2),
        "tokens_per_second": round(pace.tokens / seconds, 1),
    }
