"""sample: the policy (at first the SFT model) answers every prompt once per slot, all slots in one
pass."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from dpo_dist.config import EngineConfig, Sample, Slot, required
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import disjoint
from dpo_dist.data.rows import source_identity
from dpo_dist.data.templates import slot_messages
from dpo_dist.data.thoughts import spoken
from dpo_dist.errors import DataError
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.generation.sampling import answer_all, engine_seed
from dpo_dist.phases.trial import try_prompts_of
from dpo_dist.runs.manifests import SampleResult, Speed
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import PhaseDirectory, read_records, write_records
from dpo_dist.storage.figures import read_figures, write_figures
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Candidate, Prompt
from dpo_dist.storage.shards import Journals
from dpo_dist.system.ranks import Shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SamplePhase:
    """Samples the candidates that the judge compares."""

    name = "sample"
    sections = ("sample",)
    journals = "candidates"

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The prompts and the weights of the policy."""
        inputs: dict[str, JsonValue] = {
            "prompts": source_identity(required(run.config.sample).prompts),
            "weights": run.start_weights().identity(),
        }
        return inputs | ({"part": run.prompts_part} if run.prompts_part else {})

    def engine(self, run: Run) -> EngineConfig:
        return required(run.config.sample).engine

    def expected(self, run: Run, shard: Shard) -> int:
        slots = len(required(run.config.sample).slots)
        return slots * shard.size(sum(1 for _ in run.prompts()))

    def run(self, run: Run, out: PhaseDirectory) -> SampleResult | None:
        """Generate this shard's missing candidates, then write `candidates.jsonl`."""
        write_records(out.path / "prompts.jsonl", disjoint(run.prompts(), run.held_out_prompts()))
        with Journals(
            out, self.journals, Candidate, lambda c: request_id(c.prompt_id, c.slot)
        ) as journals:
            _generate(run, _tokenized(run, out), out, journals)
            journals.refresh()
            return _collect(run, out, journals)


@dataclass(frozen=True, slots=True)
class _TokenizedPrompt:
    """A prompt as token ids, one sequence per slot; arrays save memory for many prompts."""

    id: str
    ids: tuple[array[int], ...]


def request_id(prompt_id: str, slot: int) -> str:
    """The id of a request; unique, since slot numbers contain no slash."""
    return f"{slot}/{prompt_id}"


def _tokenized(run: Run, out: PhaseDirectory) -> list[_TokenizedPrompt]:
    """The shard's prompts that fit the engine together with their answers."""
    tokenizer, sample = _tokenizer(run), required(run.config.sample)
    try_prompts_of(run, tokenizer)
    prompts = read_records(out.path / "prompts.jsonl", Prompt)
    own = (p for number, p in enumerate(prompts) if out.shard.holds(number))
    return [fitting for p in own if (fitting := _fitting(p, tokenizer, sample))]


def _fitting(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, sample: Sample
) -> _TokenizedPrompt | None:
    """The tokenized prompt of every slot; None if one of them does not fit the engine."""
    messages = [slot_messages(prompt, slot) for slot in sample.slots]
    ids = {m: array("I", prompt_ids(tokenizer, m)) for m in dict.fromkeys(messages)}
    for slot, own in zip(sample.slots, messages, strict=True):
        if len(ids[own]) + _max_tokens(sample, slot) > sample.engine.max_model_len:
            return None
    return _TokenizedPrompt(prompt.id, tuple(ids[own] for own in messages))


def _generate(
    run: Run, queue: Sequence[_TokenizedPrompt], out: PhaseDirectory, journals: Journals[Candidate]
) -> None:
    """Generate the candidates that the journals lack, and write the speed."""
    config, sample, weights = run.config, required(run.config.sample), run.start_weights()
    keys = (request_id(prompt.id, slot) for prompt in queue for slot in range(len(prompt.ids)))
    total, done = len(queue) * len(sample.slots), sum(key in journals for key in keys)
    if done == total:
        return
    started = time.monotonic()
    engine = build_engine(
        sample.engine,
        weights.model,
        dtype=config.model.dtype,
        seed=engine_seed(run.sampling_seed, len(journals), out.shard),
        adapters=[weights.adapter] if weights.adapter else [],
        seeded=sample.slots[0].seed is not None,
        template=config.model.template,
        trust_remote_code=config.model.trust_remote_code,
    )
    ready = time.monotonic()
    tokenizer, prompts = _tokenizer(run), {prompt.id: prompt.ids for prompt in queue}

    def record(completion: Completion) -> Candidate:
        number, prompt_id = completion.id.split("/", 1)
        prompt = prompts[prompt_id][int(number)]
        answer = spoken(tokenizer, prompt, completion.token_ids, completion.text)
        return Candidate(
            prompt_id=prompt_id,
            slot=int(number),
            text=answer.text,
            thought=answer.thought,
            prompt_ids=tuple(prompt),
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            log_prob=completion.log_prob,
            settings=sample.slots[int(number)].model_dump(mode="json"),
            engine=engine.identity,
        )

    requests = _missing_requests(queue, sample, weights.adapter, journals)
    with closing(engine):
        pace = answer_all(
            engine, requests, record, journals.own, name="sample", done=done, total=total
        )
    seconds = time.monotonic() - ready
    speed = Speed(
        engine_start_seconds=round(ready - started, 2),
        first_candidate_seconds=round(pace.first_seconds, 2),
        candidates_per_second=round((total - done) / seconds, 3),
        tokens_per_second=round(pace.tokens / seconds, 1),
    )
    write_figures(out.path / f"pace-{out.shard.index}-of-{out.shard.count}.json", speed)


def _missing_requests(
    queue: Sequence[_TokenizedPrompt],
    sample: Sample,
    adapter: Path | None,
    journals: Journals[Candidate],
) -> Iterator[Request]:
    """The requests without a candidate. A prompt's slots are adjacent, so that they share the
    prefix cache."""
    for prompt in queue:
        for number, slot in enumerate(sample.slots):
            key = request_id(prompt.id, number)
            if key not in journals:
                yield Request(
                    id=key,
                    prompt_ids=tuple(prompt.ids[number]),
                    sampling=slot,
                    max_tokens=_max_tokens(sample, slot),
                    adapter=adapter,
                    seed=None if slot.seed is None else _request_seed(slot.seed, key),
                    log_prob=True,
                )


def _request_seed(seed: int, key: str) -> int:
    """The seed of one request, 63 bits."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _all_requests(
    run: Run, out: PhaseDirectory, journals: Journals[Candidate]
) -> tuple[list[str], int] | None:
    """The ids of all requests in the prompts' order, and the number of prompts that are too long.
    None while a candidate is missing. Raises `DataError` if no prompt fits the engine."""
    sample = required(run.config.sample)
    tokenizer = None
    keys: list[str] = []
    too_long = 0
    for prompt in read_records(out.path / "prompts.jsonl", Prompt):
        own = [request_id(prompt.id, number) for number in range(len(sample.slots))]
        if all(key in journals for key in own):
            keys += own
            continue
        tokenizer = tokenizer or _tokenizer(run)  # loading takes seconds and is rarely needed
        if _fitting(prompt, tokenizer, sample):
            return None
        too_long += 1
    if not keys:
        room = sample.engine.max_model_len
        raise DataError(f"no prompt leaves room for an answer within max_model_len {room}")
    return keys, too_long


def _collect(run: Run, out: PhaseDirectory, journals: Journals[Candidate]) -> SampleResult | None:
    """Write the candidates in the prompts' order; returns None while one is missing."""
    requests = _all_requests(run, out, journals)
    if requests is None:
        return None
    keys, too_long = requests
    cut_off, engines = 0, set[str]()

    def candidates() -> Iterator[Candidate]:
        nonlocal cut_off
        for candidate in journals.read(keys):
            cut_off += candidate.finish_reason == "length"
            engines.add(candidate.engine)
            yield candidate

    write_records(out.path / "candidates.jsonl", candidates())
    kept = len(keys) // len(required(run.config.sample).slots)
    return SampleResult(
        counts=Counts(received=kept + too_long, kept=kept, dropped={"prompt_too_long": too_long}),
        candidates=len(keys),
        cut_off=cut_off,
        engines=tuple(sorted(engines)),
        **_speed(out).model_dump(),
    )


def _speed(out: PhaseDirectory) -> Speed:
    """The speed of all shards together: the sum of rates, the maximum of times."""
    shards = [read_figures(p, Speed) for p in out.path.glob(f"pace-*-of-{out.shard.count}.json")]
    total: dict[str, float] = {}
    for name in Speed.model_fields:
        values = [value for speed in shards if (value := getattr(speed, name)) is not None]
        if values:
            combine = sum if name.endswith("per_second") else max
            total[name] = round(combine(values), 3)
    return Speed(**total)


def _max_tokens(sample: Sample, slot: Slot) -> int:
    return slot.max_tokens or sample.max_new_tokens


def _tokenizer(run: Run) -> PreTrainedTokenizerBase:
    model = run.start_weights().model
    config = run.config.model
    return load_tokenizer(model, config.template, trust_remote_code=config.trust_remote_code)
