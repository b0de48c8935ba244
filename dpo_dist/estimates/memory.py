"""A model's sizes, and the memory and disk that a training process needs, in bytes.

The activation formula counts the tensors that autograd keeps for a Llama-type layer in bfloat16;
it was within 0.2 % of the measured saved tensors (docs/scaling.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_dist.config import Checkpointing, Full, Lora, Method, Model, Optimization, Train
from dpo_dist.config.method import LINEAR

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# As in training/logprobs.py: rows of the LM head's tiles on a CPU, bytes of a tile on a GPU,
# rows of a product of the head's gradient on a CPU, rows of the gradient that are added to at once.
CPU_TILE_ROWS, GPU_TILE_BYTES = 128, 2**29
CPU_GRADIENT_ROWS, GRADIENT_BLOCK_ROWS = 1024, 2**15
# Bytes per weight of a linear layer in NF4: half a byte, and a scale per 64 weights in 8 bits,
# quantized itself with a float32 per 256 scales (Dettmers et al. 2023,
# https://arxiv.org/abs/2305.14314, section 3: "double quantization").
NF4_WEIGHT = 0.5
NF4_SCALES = 1 / 64 + 4 / (64 * 256)


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
    def of(cls, config: PretrainedConfig) -> ModelShape:
        """The sizes in a transformers configuration; of a size that differs from layer to layer
        (Gemma 4), the mean. A model without attention gets one head."""
        heads = _size(config, "num_attention_heads") or 1
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            key_heads=_size(config, "num_key_value_heads") or heads,
            head_dim=_size(config, "head_dim") or config.hidden_size // heads,
            ffn=_size(config, "intermediate_size") or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", True)),
        )

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules."""
        query, key = self.heads * self.head_dim, self.key_heads * self.head_dim
        h, f = self.hidden, self.ffn
        return [(h, query), (h, key), (h, key), (query, h), (h, f), (h, f), (f, h)]

    @property
    def body_parameters(self) -> int:
        """Weights by which every token is multiplied, without the embedding and the head."""
        return self.layers * sum(a * b for a, b in self.linear)

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.body_parameters + norms + embeddings

    def adapted(self, method: Lora) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules with an adapter: all of them, unless the
        method names some by a Llama's names."""
        named = dict(zip(LINEAR, self.linear, strict=True))
        targets, excluded = method.target_modules, method.exclude_modules or ()
        left = [name for name in LINEAR if isinstance(excluded, str) or name not in excluded]
        chosen = left if isinstance(targets, str) else [name for name in left if name in targets]
        return [named[name] for name in chosen or left]

    def lora_parameters(self, method: Lora) -> int:
        """The weights of an adapter, without `modules_to_save`. For other ranks of some modules the
        largest counts, and all layers do."""
        r = max([method.r, *method.rank_pattern.values()])
        sizes = self.adapted(method)
        return self.layers * sum(r * (a + b) + method.use_dora * b for a, b in sizes)

    def saved_parameters(self, method: Lora) -> int:
        """The weights of the embedding and the head in `modules_to_save`; other modules are small
        or unknown."""
        return len(method.saves_tied) * self.vocabulary * self.hidden


def _size(config: PretrainedConfig, name: str) -> int | None:
    """A size in the configuration. It refuses to tell one that differs between layers."""
    if name not in (config.per_layer_attributes or ()):
        return getattr(config, name, None)
    sizes = [getattr(layer, name, None) or 0 for layer in config.per_layer_config]
    return math.ceil(sum(sizes) / len(sizes))


def trained_parameters(shape: ModelShape, method: Method) -> int:
    """The number of weights with a gradient."""
    if not isinstance(method, Lora):
        return shape.parameters
    return shape.lora_parameters(method) + shape.saved_parameters(method)


def trains_head(method: Method) -> bool:
    """Whether the LM head has a gradient."""
    return isinstance(method, Full) or "lm_head" in method.saves_tied


def activation_bytes(
    shape: ModelShape, method: Method, *, tokens: int, bf16: bool, checkpointing: Checkpointing
) -> int:
    """Maximum bytes that autograd keeps for `tokens` computed positions: all tensors of the layer
    in its backward pass, and for every other layer the tensors that checkpointing keeps."""
    half = 2 if bf16 else 4
    layer, once = _layer_bytes(shape, method, half)
    kept = _kept_bytes(shape, method, half, checkpointing)
    return tokens * (layer + once) + tokens * kept * (shape.layers - 1)


def _layer_bytes(shape: ModelShape, method: Method, half: int) -> tuple[int, int]:
    """(bytes per token and layer, bytes per token) that autograd keeps."""
    h, f, a = shape.hidden, shape.ffn, shape.heads
    per_layer = 20 * h + 4 * h * shape.key_heads // a + 8 * f + 4 * a + 8
    if isinstance(method, Lora):
        per_layer += half * method.r * len(shape.adapted(method))
    return per_layer * half // 2, 6 * h * half // 2


def _kept_bytes(shape: ModelShape, method: Method, half: int, kind: Checkpointing) -> int:
    """Bytes per token that autograd keeps of each layer that is not in its backward pass."""
    if kind == "none":
        return _layer_bytes(shape, method, half)[0]
    width = shape.hidden  # the layer's input
    if kind == "selective":
        width += sum(outputs for _, outputs in shape.linear) + shape.heads * shape.head_dim
        if isinstance(method, Lora):
            width += method.r * len(shape.adapted(method))
        return half * width + 4 * shape.heads  # plus the log-sum-exp of the scores
    return half * width


def head_bytes(
    shape: ModelShape, method: Method, scored: int, *, bf16: bool = True, on_cpu: bool = False
) -> int:
    """Bytes for the log-probs of `scored` predicted positions: a tile of logits and one of their
    probabilities, the hidden states and their gradients. A trained head also has a gradient of its
    own, in float32; of a frozen one a CPU makes a copy in float32."""
    vocabulary, head, half = shape.vocabulary, shape.vocabulary * shape.hidden, 2 if bf16 else 4
    trained = trains_head(method)
    rows = CPU_TILE_ROWS if on_cpu else min(scored, GPU_TILE_BYTES // (4 * vocabulary))
    own = rows * vocabulary * (8 + 2 * bf16) + 2 * scored * shape.hidden * half
    if trained:  # its copy in bfloat16 is one of autocast's (`model_states`)
        by_logit = min(scored, CPU_GRADIENT_ROWS) * vocabulary * half if on_cpu else 0
        block = 4 * min(vocabulary, GRADIENT_BLOCK_ROWS) * shape.hidden
        own += by_logit + block + 4 * head
    elif bf16 and on_cpu:
        own += 4 * head
    return own


def training_disk(shape: ModelShape, section: Optimization, model: Model) -> dict[str, int]:
    """Maximum bytes on disk, by kind.

    A checkpoint has at most 16 bytes per trained weight: 2 in safetensors, 2 in DeepSpeed's file,
    and 12 of master weights and moments (without DeepSpeed: 4 and 8). While the newest
    checkpoint is written, one more than `keep_checkpoints` exists. The final model may be in
    float32.
    """
    trained = trained_parameters(shape, section.method)
    best = isinstance(section, Train) and section.select == "best"
    merged = isinstance(section, Train) and section.merge
    return {
        "checkpoints while training": 16 * trained * (section.keep_checkpoints + 1 + best),
        "the model at its end": 4 * trained,
        "the merged model": merged * shape.parameters * (2 if model.dtype == "bfloat16" else 4),
    }
