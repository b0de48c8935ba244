"""What a training trains: LoRA adapters (`Lora`) or all weights (`Full`)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from dpo_dist.config.base import Section

# Keys of PEFT's `LoraConfig` that are refused, with the reasons.
_BASE_CHANGES = "the reference is the base without the adapter, which this would change"
_NO_LINEAR = "it is not for the linear layers of a language model"
_UNSUPPORTED = "the reference, the merge or the engines cannot use such an adapter"
REFUSED_LORA: dict[str, str] = {
    "lora_alpha": "its name is `alpha`",
    "lora_dropout": "its name is `dropout`",
    "bias": _BASE_CHANGES,
    "layer_replication": _BASE_CHANGES,
    **dict.fromkeys(
        ("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        f"it belongs to an `init_lora_weights` that is refused: {_BASE_CHANGES}",
    ),
    **dict.fromkeys(("fan_in_fan_out", "megatron_config", "megatron_core"), _NO_LINEAR),
    **dict.fromkeys(
        (
            *("velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size"),
            *("monteclora_config", "use_bdlora", "arrow_config", "kasa_config", "lora_bias"),
            *("trainable_token_indices", "target_parameters", "ensure_weight_tying"),
        ),
        _UNSUPPORTED,
    ),
    "runtime_config": "it is not kept with an adapter",
}


class Lora(Section):
    """Low-rank adapters; the keys are those of PEFT's `LoraConfig`."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scale: updates are multiplied by alpha / r; with `use_rslora` by alpha / sqrt(r)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' inputs, for sft."""
    target_modules: tuple[str, ...] | str = "all-linear"
    """Names of the layers that get an adapter, or a regular expression; all-linear: every linear
    layer except the LM head."""
    exclude_modules: tuple[str, ...] | str | None = None
    """Names, or a regular expression, of layers that get none."""
    layers_to_transform: tuple[int, ...] | int | None = None
    """Only these layers, counted from 0; needs a list as `target_modules`."""
    layers_pattern: tuple[str, ...] | str | None = None
    """Name of the list of layers in the model, for `layers_to_transform`."""
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Other ranks, by name or regular expression."""
    alpha_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Other values of `alpha`, by name or regular expression."""
    modules_to_save: tuple[str, ...] | None = None
    """Names of modules that are trained and saved whole, such as lm_head."""
    use_dora: bool = False
    """DoRA: also train the length of each weight's rows."""
    use_rslora: bool = False
    """rsLoRA: scale by alpha / sqrt(r)."""
    init_lora_weights: Literal[True, "gaussian"] = True
    """How an adapter starts. Its update is 0 with either, as the reference needs."""
    quantization: Literal["nf4"] | None = None
    """nf4: the frozen linear layers are kept in 4 bits (QLoRA), which needs the extra `qlora`;
    embeddings, norms and the LM head stay in the model's dtype. null: no quantization."""

    @property
    def saves_tied(self) -> tuple[str, ...]:
        """The embedding and the head in `modules_to_save`, which a model may tie."""
        names = self.modules_to_save or ()
        return tuple(name for name in names if name.rpartition(".")[2] in TIED_MODULES)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: object) -> object:
        if isinstance(values, dict):
            for key, reason in REFUSED_LORA.items():
                if key in values:
                    raise ValueError(f"`{key}` cannot be set: {reason}")
            init = values.get("init_lora_weights", True)
            if init is not True and init != "gaussian":
                raise ValueError(
                    f"init_lora_weights: {init} is not possible: use true or gaussian, with which "
                    "the update is 0 at the start. Others change the base (PiSSA, OLoRA, LoftQ, "
                    "EVA, CorDA, MiCA) or start from another model, so that the base without the "
                    "adapter would be the wrong reference"
                )
        return values

    @model_validator(mode="after")
    def _check_layers(self) -> Lora:
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules: lm_head cannot have an adapter: its log-probs are computed from "
                "its weight. Name it in `modules_to_save`, which trains it whole"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("`layers_to_transform` needs a list of names as `target_modules`")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`")
        return self


class Full(Section):
    """Full fine-tuning of all weights."""

    type: Literal["full"] = "full"


# The linear layers of a Llama and of most other models.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Names of embeddings and heads, which some models tie.
TIED_MODULES = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings")

# What an adapter is, apart from how it was trained: DPO can continue only an adapter of its kind.
ADAPTER_KIND = (
    *("r", "alpha", "use_rslora", "use_dora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save"),
)

Method: TypeAlias = Annotated[Lora | Full, Field(discriminator="type")]


def is_quantized(method: Method) -> bool:
    """Whether the frozen linear layers are in 4 bits."""
    return isinstance(method, Lora) and method.quantization is not None
