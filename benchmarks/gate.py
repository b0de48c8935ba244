"""How often the checks before the first step would stop a correct run, and which faults they catch.

    python -m benchmarks.gate [--quick] [--json FILE] [--tokens N] [--adapter STD] [--model DIR]

A model in bfloat16 answers eight prompts twice, with `--tokens` tokens each at temperature 1. The
answers' log-probs are computed with a LoRA adapter as in training, and again in other ways: in
batches of other sizes, with the products of all linear layers summed in another order or in two
rounded halves, and with logits rounded to bfloat16. The differences are the noise.

A simulated micro-batch draws from these answers, each with a random sign. Two more kinds of noise
are independent errors of the tokens with heavy tails (Student's t, 4 degrees of freedom), of 0.9
and 1.2 nats per 300 tokens. A false stop is a micro-batch on which `check_policy`,
`check_reference` or `check_arithmetic` (at any beta) raises. Faults are planted in the model or in
the stored values. `--quick` takes a small random model and fewer simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks.figures import MODEL, option_parser, publish
from dpo_dist.config import Train
from dpo_dist.data.chat import left_padded, load_tokenizer
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import sigmoid_loss
from dpo_dist.training import Batch, attention, layout, logprobs, lora_linear
from dpo_dist.training.preference_trainer import PairCollator
from dpo_dist.training.start_check import (
    AnswerDifference,
    Expected,
    check_arithmetic,
    check_policy,
    check_reference,
)

Values = NDArray[np.float64]  # (answers, tokens)
TOPICS = ("winter", "bread", "Rome", "a bicycle", "the sea", "an engine", "friendship", "gardens")
BETAS, PAIRS = (0.01, 0.1, 0.5), (1, 2, 8, 32)
REVIEWED = {"t noise, 0.9 nats per 300 tokens": 0.9, "t noise, 1.2 nats per 300 tokens": 1.2}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--adapter", type=float, default=0.03, help="deviation of the adapter's B")
    options = parser.parse_args()
    torch.manual_seed(0)
    attention.register()
    model, prompts = small_model() if options.quick else real_model(options.model)
    model = with_adapter(model, options.adapter)
    rows = sampled(model, prompts, 40 if options.quick else options.tokens)
    prepare(model)
    trainings = 200 if options.quick else 2_000
    figures: dict[str, float] = {}
    expected = log_probs(model, rows, 2)
    noises = measured_noise(model, rows, expected)
    for name, noise in noises.items():
        figures |= size(name, noise)
    draw = np.random.default_rng(0)
    stopped = 0
    for name, noise in (noises | review_noise(draw, expected.shape)).items():
        for pairs in PAIRS:
            count = sum(stops(drawn(draw, noise, pairs), draw) for _ in range(trainings))
            figures[f"false stops of {trainings:,}: {name}, {pairs} pairs"] = count
            stopped += count
    total = trainings * len(PAIRS) * (len(noises) + len(REVIEWED))
    figures["false stops in all"], figures["micro-batches in all"] = stopped, total
    for name, fault in faults(model, rows, expected).items():
        figures |= size(name, fault)
        for pairs in PAIRS:
            found = sum(caught(name, drawn(draw, fault, pairs, sign=False)) for _ in range(100))
            figures[f"caught of 100: {name}, {pairs} pairs"] = found
    publish(figures, options.json)


def small_model() -> tuple[Any, list[list[int]]]:
    """A random model, whose logits differ by some nats, and random prompts."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    prompts = torch.randint(3, 512, (len(TOPICS), 20)).tolist()
    return model.bfloat16(), prompts


def real_model(path: Path) -> tuple[Any, list[list[int]]]:
    """A model on disk, and a request for an essay on each topic."""
    tokenizer = load_tokenizer(str(path))
    asked = [f"Write a long essay about {topic}, in several paragraphs." for topic in TOPICS]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
        for text in asked
    ]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model, prompts


def with_adapter(model: Any, deviation: float) -> Any:
    """The model with an adapter that changes it, in the place of an SFT adapter."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=deviation)
    return model.eval()


def sampled(model: Any, prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    """A row per prompt, with two sampled answers of that many tokens."""
    ids, mask = left_padded([prompt for prompt in prompts for _ in range(2)], 0)
    with torch.no_grad(), model.disable_adapter():  # faster, and likely enough with it
        answers = model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )[:, len(ids[0]) :].tolist()
    pairs = zip(prompts, answers[::2], answers[1::2], strict=True)
    return [
        {"id": str(n), "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for n, (prompt, chosen, rejected) in enumerate(pairs)
    ]


def prepare(model: Any) -> None:
    """The forwards of the trainer."""
    base = model.get_base_model()
    base.set_attn_implementation(attention.NAME)
    add_fused_lm_head(base)
    layout.install(model)
    lora_linear.install(model)


@contextmanager
def half() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


def score(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(log-probs, mask of the completions), both (R, L - 1), of a collator's batch."""
    mask = batch.pop("completion_mask")
    batch.pop("rows"), batch.pop("witness")
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    out = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    return out.log_probs, mask[:, 1:].bool()


def log_probs(model: Any, rows: list[dict[str, Any]], batch_size: int) -> Values:
    """(answers, tokens): the chosen and the rejected answer of each row in turn."""
    collator = PairCollator(pad_token_id=0, packed=True)
    found = []
    for start in range(0, len(rows), batch_size):
        with half():
            scored, mask = score(model, collator(rows[start : start + batch_size]))
        values = scored[mask].double().view(len(mask), -1)
        found.append(torch.stack(values.chunk(2), 1).flatten(0, 1))  # row by row
    return torch.cat(found).numpy()


def measured_noise(model: Any, rows: list[dict[str, Any]], expected: Values) -> dict[str, Values]:
    """Differences between two ways to compute the same log-probs."""
    sizes = {n: log_probs(model, rows, n) for n in (1, 8)}
    noise = {f"batches of {n} against 2": found - expected for n, found in sizes.items()}
    noise["batches of 8 against 1"] = sizes[8] - sizes[1]
    linear, exact = F.linear, logprobs._Tiles.logits
    generator = torch.Generator().manual_seed(1)

    def permuted(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        order = torch.randperm(x.shape[-1], generator=generator)
        return linear(x[..., order], weight[:, order], bias)

    def halved(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        n = x.shape[-1] // 2
        return linear(x[..., :n], weight[:, :n], bias) + linear(x[..., n:], weight[:, n:])

    def rounded(tiles: Any, hidden: torch.Tensor) -> torch.Tensor:
        return exact(tiles, hidden).bfloat16().float()

    for name, other in {"sums in another order": permuted, "sums of two halves": halved}.items():
        with replaced(F, "linear", other):
            noise[name] = log_probs(model, rows, 2) - expected
            with replaced(logprobs._Tiles, "logits", rounded):
                noise[f"{name}, rounded logits"] = log_probs(model, rows, 2) - expected
    return noise


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def review_noise(draw: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Values]:
    """Independent errors of the tokens, of a given size per answer."""
    answers, tokens = 1000, shape[1]
    heavy = draw.standard_t(4, (answers, tokens)) / math.sqrt(2)  # variance 1
    return {name: heavy * nats / math.sqrt(300) for name, nats in REVIEWED.items()}


def drawn(draw: np.random.Generator, noise: Values, pairs: int, *, sign: bool = True) -> Values:
    """(2 * pairs, tokens): answers of a micro-batch."""
    chosen = noise[draw.integers(len(noise), size=2 * pairs)]
    return chosen * draw.choice([-1.0, 1.0], size=(2 * pairs, 1)) if sign else chosen


def answers_of(noise: Values) -> list[AnswerDifference]:
    totals, squares = noise.sum(1), np.square(noise).sum(1)
    tokens = noise.shape[1]
    return [
        AnswerDifference("x", tokens, *v)
        for v in zip(totals.tolist(), squares.tolist(), strict=True)
    ]


def stops(noise: Values, draw: np.random.Generator) -> bool:
    """Whether a check raises, at any beta, for a correct run with this noise."""
    answers = answers_of(noise)
    pairs = len(answers) // 2
    error = max(math.sqrt(a.squares * a.tokens) for a in answers)
    expected = Expected((0.0,) * pairs, (0.0,) * pairs, error)
    chosen, rejected = noise.sum(1).reshape(2, pairs)
    try:
        check_policy(answers, "bfloat16")
        check_reference(answers, "bfloat16")
        for beta in BETAS:
            loss = sigmoid_loss((chosen - rejected).tolist(), beta)
            rewards = (beta * chosen.mean(), beta * rejected.mean())
            check_arithmetic(loss, rewards, Train(beta=beta), expected)
    except TrainingDiverged:
        return True
    return False


def caught(name: str, difference: Values) -> bool:
    """Whether the check that is responsible for the fault raises."""
    answers = answers_of(difference)
    check = check_reference if name in STORED else check_policy
    try:
        check(answers, "bfloat16")
    except TrainingDiverged:
        return True
    return False


STORED = ("the stored reference is the base", "one pair swapped")


def faults(model: Any, rows: list[dict[str, Any]], expected: Values) -> dict[str, Values]:
    """Differences that planted faults make."""
    found: dict[str, Values] = {}
    with model.disable_adapter():
        found["adapter off"] = log_probs(model, rows, 2) - expected
        found["the stored reference is the base"] = log_probs(model, rows, 8) - expected
    for rate in (0.05, 0.1):
        dropping: Callable[..., torch.Tensor] = lambda m, i, out, p=rate: F.dropout(out, p)  # noqa: E731
        layers = model.get_base_model().model.layers
        handles = [layer.mlp.register_forward_hook(dropping) for layer in layers]
        found[f"dropout {rate:g}"] = log_probs(model, rows, 2) - expected
        for handle in handles:
            handle.remove()
    pairs = expected.reshape(-1, 2, expected.shape[1])
    found["one pair swapped"] = (pairs[:, 0] - pairs[:, 1]).reshape(-1, expected.shape[1])
    return found


def size(name: str, values: Values) -> dict[str, float]:
    totals = values.sum(1)
    return {
        f"{name}: a token, rms (nats)": float(np.sqrt(np.square(values).mean())),
        f"{name}: a token, mean (nats)": float(values.mean()),
        f"{name}: an answer, rms (nats)": float(np.sqrt(np.square(totals).mean())),
        f"{name}: an answer, largest (nats)": float(np.abs(totals).max()),
    }


if __name__ == "__main__":
    main()
