"""What every engine owes the phases. vLLM answers with SmolLM2, transformers with a tiny model; so
do two loopback servers, which answer with the same tiny model behind vLLM's protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import HfEngine, Sampling, VllmEngine, VllmServer
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Engine, Request
from dpo_dist.generation.hf_engine import HfInProcess
from dpo_dist.generation.vllm_server import VllmServers
from dpo_dist.storage.records import Message
from tests.conftest import SMOLLM2
from tests.vllm_server import Answer, serve

GREEDY, COOL, HOT = (Sampling(temperature=t) for t in (0.0, 0.7, 1.2))
IDENTITIES = {"hf": "seed=1", "vllm": "seed=1", "vllm_server": "vllm-0.32.0-0a1b2c3d"}


def with_own_habits(model: Path, folder: Path) -> Path:
    """The same model, whose generation_config.json asks for other answers than the run file."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "generation_config.json"
    kept = json.loads(settings.read_text()) if settings.exists() else {}
    settings.unlink(missing_ok=True)
    own = {"do_sample": True, "repetition_penalty": 1.9, "top_k": 2, "min_new_tokens": 3}
    settings.write_text(json.dumps(kept | own))
    return folder


def make_adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter that changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    settings = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(loaded, settings)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@contextmanager
def behind_servers(engine: Engine, model: Path, adapter: Path) -> Iterator[tuple[str, ...]]:
    """The URLs of two replicas that answer with this engine."""
    turn, arms = threading.Lock(), {str(model): None, "sft": adapter}

    def answer(name: str, body: dict[str, Any]) -> Answer:
        settings = {key: body[key] for key in ("temperature", "top_p", "min_p")}
        sampling = Sampling(**settings, top_k=body["top_k"] or None)
        asked = Request("r", tuple(body["prompt"]), sampling, body["max_tokens"], arms[name])
        with turn:
            (given,) = engine.generate([asked])
        return Answer(list(given.token_ids), given.text, given.finish_reason)

    with serve(2, model=str(model), adapters={"sft": adapter}, answer=answer) as replicas:
        yield tuple(replica.url for replica in replicas)


@pytest.fixture(
    scope="module",
    params=[
        "hf",
        "vllm_server",
        pytest.param("vllm", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def served(request, tiny_model, tmp_path_factory) -> Iterator[tuple[Engine, Path, Path]]:
    """(engine, its model, an adapter that it serves)."""
    if request.param == "vllm":
        model, config = SMOLLM2, VllmEngine(type="vllm", max_model_len=256, kv_cache_gib=1)
    else:
        model, config = tiny_model, HfEngine(type="hf", max_model_len=256)
    model = with_own_habits(model, tmp_path_factory.mktemp("model") / model.name)
    adapter = make_adapter(model, tmp_path_factory.mktemp("adapter"))
    engine = build_engine(config, str(model), dtype="float32", seed=1, adapters=[adapter])
    if request.param == "vllm_server":
        with behind_servers(engine, model, adapter) as urls:
            servers = VllmServer(type="vllm_server", urls=urls, max_model_len=256, in_flight=4)
            yield (
                build_engine(servers, str(model), dtype="float32", seed=1, adapters=[adapter]),
                model,
                adapter,
            )
    else:
        yield engine, model, adapter
    engine.close()


def ids(model: Path, text: str) -> tuple[int, ...]:
    tokenizer = load_tokenizer(str(model))
    return tuple(prompt_ids(tokenizer, [Message(role="user", content=text)]))


def test_every_request_is_answered_once_under_its_own_setting(served) -> None:
    engine, model, adapter = served
    texts = ["hi", "🙂 שלום \u202e", "<|im_end|> is text", "word " * 20]
    requests = [
        Request(f"{n}/{slot}/{arm is not None}", ids(model, text), setting, 4 + 4 * slot, arm)
        for n, text in enumerate(texts)
        for slot, setting in enumerate((COOL, HOT))
        for arm in (None, adapter)
    ]
    answers = {answer.id: answer for answer in engine.generate(requests)}
    assert answers.keys() == {request.id for request in requests}
    for request in requests:
        answer = answers[request.id]
        assert 1 <= len(answer.token_ids) <= request.max_tokens
        cut_off = answer.finish_reason == "length"
        assert cut_off <= (len(answer.token_ids) == request.max_tokens)


def test_an_answer_s_log_prob_is_the_model_s_whatever_the_sampling(served) -> None:
    """At any temperature and under filters, with and without the adapter; only if asked for. A
    server does not say whether its log-probs are the model's own, so it gives none."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from dpo_dist.training.start_check import ENGINE_NOISE, tolerance

    engine, model, adapter = served
    sharp = Sampling(temperature=1.2, top_k=5, min_p=0.1)
    asked = [
        Request(f"{n}/{arm is not None}", ids(model, "hello " * (n + 1)), slot, 12, arm, None, True)
        for n, slot in enumerate((GREEDY, COOL, HOT, sharp))
        for arm in (None, adapter)
    ]
    answers = {answer.id: answer for answer in engine.generate(asked)}
    if isinstance(engine, VllmServers):
        assert {answer.log_prob for answer in answers.values()} == {None}
        return
    judge = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter))
    for request in asked:
        answer, prompt = answers[request.id], list(request.prompt_ids)
        row = torch.tensor([prompt + list(answer.token_ids)])
        with torch.no_grad(), judge.disable_adapter() if request.adapter is None else nullcontext():
            logits = judge(row).logits[0, len(prompt) - 1 : -1].double()
        expected = logits.log_softmax(-1).gather(1, row[0, len(prompt) :, None]).sum().item()
        # vLLM computes in bfloat16, which the trainer's check of the witness allows for.
        of_another = tolerance(len(answer.token_ids), ENGINE_NOISE)
        rounding = 2e-2 if isinstance(engine, HfInProcess) else of_another
        assert answer.log_prob == pytest.approx(expected, abs=rounding), request
    (silent,) = engine.generate([Request("x", ids(model, "hi"), COOL, 3)])
    assert silent.log_prob is None


def test_greedy_answers_repeat_and_the_adapter_changes_them(served) -> None:
    engine, model, adapter = served

    def ask(name: str, arm: Path | None) -> tuple[int, ...]:
        request = Request(name, ids(model, "Name a colour."), GREEDY, 8, arm)
        (answer,) = engine.generate([request])
        return answer.token_ids

    base = ask("a", None)
    adapted = ask("b", adapter)
    assert ask("c", None) == base
    assert ask("d", adapter) == adapted != base


def argmax_answers(
    model: Any, prompts: dict[str, tuple[int, ...]], length: int
) -> dict[str, tuple[int, ...]]:
    """What the model finds likeliest, token by token, without any `generate`."""
    import torch

    found = {}
    for name, prompt in prompts.items():
        tokens = torch.tensor([prompt])
        for _ in range(length):
            with torch.inference_mode():
                following = model(input_ids=tokens).logits[0, -1].argmax()
            tokens = torch.cat([tokens, following.view(1, 1)], dim=1)
        found[name] = tuple(tokens[0, len(prompt) :].tolist())
    return found


def test_the_model_s_own_generation_config_changes_nothing(served) -> None:
    """The model of every engine here asks for a repetition penalty."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    engine, model, adapter = served
    prompts = {str(n): ids(model, f"Count to a hundred and {n}.") for n in range(4)}

    def same(plain: Any, arm: Path | None) -> int:
        expected = argmax_answers(plain, prompts, 12)
        requests = [Request(name, prompt, GREEDY, 12, arm) for name, prompt in prompts.items()]
        answers = {answer.id: answer.token_ids for answer in engine.generate(requests)}
        # An answer may end before.
        return sum(expected[name][: len(answer)] == answer for name, answer in answers.items())

    half = model.name == SMOLLM2.name
    dtype = torch.bfloat16 if half else torch.float32
    plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    # bfloat16 may turn a near-tie; and PEFT adds this noisy adapter in float32, vLLM does not.
    assert same(plain, None) >= len(prompts) - half
    if not half:
        adapted = PeftModel.from_pretrained(plain, str(adapter))
        assert same(adapted, adapter) == len(prompts)


def test_arms_that_run_side_by_side_do_not_mix(served) -> None:
    engine, model, adapter = served

    def request(n: int, arm: Path | None) -> Request:
        return Request(f"{n}/{arm is None}", ids(model, f"Name colour {n}."), GREEDY, 8, arm)

    def ask(arms: list[Path | None]) -> dict[str, tuple[int, ...]]:
        requests = [request(n, arm) for n in range(4) for arm in arms]
        return {answer.id: answer.token_ids for answer in engine.generate(requests)}

    together = ask([None, adapter])
    apart = ask([None]) | ask([adapter])
    # A batch of another shape may decide a near-tie differently; a mix-up changes all answers.
    assert sum(together[key] == apart[key] for key in together) >= len(together) - 1


def test_no_request_is_no_work(served) -> None:
    assert list(served[0].generate([])) == []


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"min_p": 0.999}, {"top_p": 1e-6}], ids=str)
def test_the_tightest_cut_leaves_the_likeliest_token_at_any_temperature(served, cut) -> None:
    engine, model, _ = served
    prompts = {str(n): ids(model, f"Name colour {n}.") for n in range(4)}

    def ask(sampling: Sampling) -> dict[str, tuple[int, ...]]:
        requests = [Request(name, prompt, sampling, 8) for name, prompt in prompts.items()]
        return {answer.id: answer.token_ids for answer in engine.generate(requests)}

    greedy = ask(GREEDY)
    assert ask(Sampling(temperature=2.0)) != greedy
    cut_off = ask(Sampling(temperature=2.0, **cut))
    # Rounding may leave two tokens equally likely.
    assert sum(cut_off[name] == greedy[name] for name in prompts) >= len(prompts) - 1


def test_the_engine_names_what_it_is(served, request) -> None:
    assert IDENTITIES[request.node.callspec.params["served"]] in served[0].identity
