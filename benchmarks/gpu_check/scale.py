"""What the steps run on: the device, the sizes, a random model and random pairs."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_dist.training import CausalLM
from dpo_dist.training.packing import PackPlan, plan_packing


@dataclass(frozen=True)
class Sizes:
    """A decoder with gated MLPs, as in transformers' Qwen2."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def parameters(self) -> int:
        key_width = self.num_key_value_heads * self.head_dim
        layer = 2 * self.hidden_size * (self.hidden_size + key_width)
        layer += 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * layer + self.vocab_size * self.hidden_size


# The shape of Qwen2.5-1.5B.
LARGE = Sizes(1536, 8960, 28, 12, 2, 151_936)
# Small enough to save, load and shard in seconds; large enough that memory shows the strategy.
MEDIUM = Sizes(1024, 2816, 8, 8, 4, 32_000)
TOY = Sizes(64, 128, 2, 4, 2, 512)


@dataclass(frozen=True)
class Scale:
    """`model` trains in one process, `saved_model` is written to the disk; `prompt` and `answer`
    are the lengths of a pair in tokens, `micro_batches` are in pairs."""

    device: str
    quick: bool
    model: Sizes
    saved_model: Sizes
    prompt: int
    answer: int
    micro_batches: tuple[int, ...]
    compared_batches: tuple[int, ...]
    pairs: int
    repeats: int

    @classmethod
    def of_this_machine(cls, quick: bool) -> Scale:
        if not torch.cuda.is_available():
            return cls("cpu", quick, TOY, TOY, 16, 24, (2,), (1, 2, 4, 8), 8, 1)
        # The mean lengths of UltraFeedback-binarized's rows (docs/scaling.md): 844 tokens a pair.
        batches = (2, 8) if quick else (2, 8, 16)
        return cls("cuda", quick, LARGE, MEDIUM, 150, 347, batches, (1, 2, 8, 32), 64, 3)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.on_gpu else "CPU"


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def adapt_older_torch() -> str | None:
    """torch before 2.12 has no `enable_gqa` in `varlen_attn`; its kernel takes fewer key heads
    without the flag. Drop the flag there, and say so."""
    from torch.nn.attention import varlen

    if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        return None
    original = varlen.varlen_attn

    @functools.wraps(original)
    def without_flag(*args: Any, enable_gqa: bool = False, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    varlen.varlen_attn = without_flag
    return f"torch {torch.__version__}: varlen_attn has no enable_gqa, which is dropped"


def make_model(sizes: Sizes, dtype: torch.dtype, device: str) -> CausalLM:
    """A random model with packed attention, in training mode. Its logits have the spread of a
    trained model's (a standard deviation of 3): those of a fresh one hardly differ, so that
    rounding would not show."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from dpo_dist.training import attention

    attention.register()
    torch.manual_seed(0)
    config = Qwen2Config(
        **asdict(sizes),
        max_position_embeddings=4096,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model = model.to(dtype)
    with torch.no_grad():
        # Final states have a mean square of 1.
        spread = model.get_output_embeddings().weight.float().std() * sizes.hidden_size**0.5
        model.model.norm.weight *= 3.0 / spread
    model.set_attn_implementation(attention.NAME)
    return model.train()


def add_lora(model: CausalLM, rank: int = 16) -> CausalLM:
    """The model with adapters as the trainer makes them: float32, one operation per layer."""
    from peft import LoraConfig, get_peft_model

    from dpo_dist.training import lora_linear

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    lora_linear.install(adapted)
    return adapted


def save_model(folder: Path, sizes: Sizes) -> Path:
    """Write a random model in bfloat16, with a tokenizer of one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words += [f"w{number}" for number in range(len(words), sizes.vocab_size)]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m.content }} <eos> {% endfor %}",
    ).save_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make_model(sizes, torch.bfloat16, device).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def random_pairs(
    scale: Scale, count: int, *, sizes: Sizes | None = None, seed: int = 0
) -> list[Pair]:
    """Pairs of random tokens; lengths differ by up to a half from the scale's."""
    draw, vocabulary = random.Random(seed), (sizes or scale.model).vocab_size

    def tokens(mean: int) -> list[int]:
        return [
            draw.randrange(4, vocabulary) for _ in range(draw.randint(mean // 2, mean * 3 // 2))
        ]

    return [Pair(*map(tokens, (scale.prompt, scale.answer, scale.answer))) for _ in range(count)]


@dataclass(frozen=True)
class PackedBatch:
    """Pairs as one packed row. `row_places` (N,) are the places of the completion tokens in the
    flattened batch of `shape`; rows are all chosen answers, then all rejected ones."""

    input_ids: Tensor
    positions: Tensor
    plan: PackPlan
    row_places: Tensor
    shape: tuple[int, int]

    @property
    def tokens(self) -> int:
        return len(self.positions)

    @property
    def scored(self) -> int:
        return len(self.plan.scored)


def pack(pairs: Sequence[Pair], device: str) -> PackedBatch:
    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, attended, completion = torch.zeros(3, len(rows), width, dtype=torch.long)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attended[row, :end] = 1
        completion[row, len(prompt) : end] = 1
    members = [(n, n + len(pairs)) for n in range(len(pairs))]
    plan = plan_packing(ids, attended, completion, members)
    places = completion[:, 1:].flatten().nonzero()[:, 0]
    return PackedBatch(
        input_ids=ids.flatten()[plan.source].to(device),
        positions=plan.positions.to(device),
        plan=plan.to(device),
        row_places=places.to(device),
        shape=(len(rows), width - 1),
    )


def packed_hidden(model: CausalLM, batch: PackedBatch) -> Tensor:
    """(S, H): the final states at the scored positions; `layout.packed_forward` without TRL."""
    from dpo_dist.training.attention import packed_masks

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with packed_masks():
        hidden: Tensor = base.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            attention_mask=torch.ones_like(batch.positions)[None],
            use_cache=False,
            pack=batch.plan,
        ).last_hidden_state[0]
    return hidden[batch.plan.scored]


def packed_log_probs(model: CausalLM, batch: PackedBatch) -> Tensor:
    """(2, pairs): log p of the chosen and of the rejected answers, in nats."""
    from dpo_dist.training.logprobs import Head, score_tokens

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    projection = base.get_output_embeddings()
    head = Head(projection.weight, projection.bias)
    scores = score_tokens(packed_hidden(model, batch), head, batch.plan.targets)["log_probs"]
    return by_answer(scores, batch)


def by_answer(scores: Tensor, batch: PackedBatch) -> Tensor:
    """(2, pairs): sums over the answers of values per scored position (S,)."""
    rows, width = batch.shape
    flat = scores.new_zeros(rows * width)
    flat = flat.index_put((batch.row_places,), scores[batch.plan.value_index])
    return flat.view(rows, width).sum(1).view(2, -1)
