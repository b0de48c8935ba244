"""The planned peak of a training process's memory, part by part, in bytes.

The activation formula counts the tensors that autograd keeps for a Llama-type layer in bfloat16;
it was within 0.2 % of the measured saved tensors (docs/scaling.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpo_dist.config import Checkpointing, Full, Lora, Method


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder: `ffn` is the width of the gated MLP."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """From a transformers configuration; a model without attention counts as one head."""
        heads = getattr(config, "num_attention_heads", None) or 1
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            ffn=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
        )

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules."""
        query, key = self.heads * self.head_dim, self.key_heads * self.head_dim
        h, f = self.hidden, self.ffn
        return [(h, query), (h, key), (h, key), (query, h), (h, f), (h, f), (f, h)]

    @property
    def body_parameters(self) -> int:
        """Weights that every token is multiplied by, the embedding and the head left out."""
        return self.layers * sum(a * b for a, b in self.linear)

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.body_parameters + norms + embeddings

    def lora_parameters(self, r: int) -> int:
        return self.layers * sum(r * (a + b) for a, b in self.linear)


def trained_parameters(shape: ModelShape, method: Method) -> int:
    """How many weights have a gradient."""
    return shape.lora_parameters(method.r) if isinstance(method, Lora) else shape.parameters


def planned_peak(
    shape: ModelShape,
    method: Method,
    *,
    tokens: int,
    scored: int,
    bf16: bool,
    checkpointing: Checkpointing,
    zero_stage: int = 0,
    processes: int = 1,
) -> dict[str, int]:
    """Bytes by part for a micro-batch of `tokens` computed and `scored` predicted positions.

    ZeRO shards the optimizer's states (from stage 1), the gradients (2) and the weights (3)
    among the processes.
    """
    trained = trained_parameters(shape, method)
    half = 2 if bf16 else 4
    weights = shape.parameters * (4 if isinstance(method, Full) else half)
    if isinstance(method, Lora):
        weights += 4 * trained
    if isinstance(method, Full) and bf16:
        weights += 2 * shape.parameters  # autocast's copies, kept until the backward is over
    return {
        "weights": weights // (processes if zero_stage >= 3 else 1),
        "gradients": 4 * trained // (processes if zero_stage >= 2 else 1),
        "optimizer": 8 * trained // (processes if zero_stage >= 1 else 1),
        "activations": activation_bytes(
            shape, method, tokens=tokens, bf16=bf16, checkpointing=checkpointing
        ),
        "head": _head_bytes(shape, method, scored, half),
    }


def activation_bytes(
    shape: ModelShape, method: Method, *, tokens: int, bf16: bool, checkpointing: Checkpointing
) -> int:
    """What autograd holds at most for `tokens` computed positions: everything of the layer whose
    backward runs, and of every other layer what the checkpointing keeps."""
    half = 2 if bf16 else 4
    layer, once = _layer_bytes(shape, method, half)
    kept = _kept_bytes(shape, method, half, checkpointing)
    return tokens * (layer + once) + tokens * kept * (shape.layers - 1)


def _layer_bytes(shape: ModelShape, method: Method, half: int) -> tuple[int, int]:
    """(bytes a token and layer, bytes a token): what autograd keeps."""
    h, f, a = shape.hidden, shape.ffn, shape.heads
    per_layer = 20 * h + 4 * h * shape.key_heads // a + 8 * f + 4 * a + 8
    if isinstance(method, Lora):
        per_layer += half * method.r * len(shape.linear)
    return per_layer * half // 2, 6 * h * half // 2


def _kept_bytes(shape: ModelShape, method: Method, half: int, kind: Checkpointing) -> int:
    """Bytes a token that one of the other layers keeps."""
    if kind == "none":
        return _layer_bytes(shape, method, half)[0]
    width = shape.hidden  # the layer's input
    if kind == "selective":
        width += sum(outputs for _, outputs in shape.linear) + shape.heads * shape.head_dim
        if isinstance(method, Lora):
            width += method.r * len(shape.linear)
        return half * width + 4 * shape.heads  # and the scores' log-sum-exp
    return half * width


def _head_bytes(shape: ModelShape, method: Method, scored: int, half: int) -> int:
    """Tiles of 128 rows, hidden states and their gradients; a trained head also has its own
    float32 gradient and the logits' gradients of 1,024 rows."""
    tiles = 128 * shape.vocabulary * (8 + half)
    hidden = 2 * scored * shape.hidden * half
    if isinstance(method, Lora):
        return tiles + hidden
    return tiles + hidden + shape.vocabulary * (4 * shape.hidden + min(scored, 1024) * half)
