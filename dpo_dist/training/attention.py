"""Attention over packed rows, under a name registered with transformers.

A branch sees its group's shared prefix and itself. The function is registered with
`AttentionInterface`, so models need no change; without a plan it is plain SDPA, or its definition
where SDPA cannot do what the model asks for.

Shapes: H query heads, K key heads, T packed positions, D and E the sizes of a head of queries and
keys, and of values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpo_dist.errors import ModelError
from dpo_dist.training import CausalLM
from dpo_dist.training.packing import PackPlan, plan_packing
from dpo_dist.training.segment_attention import Rule, flattened, segment_attention

NAME = "dpo_packed"
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_WIDTH = 256  # the flash kernel's widest head

# The rules of attention that were used, by device and dtype, and whether they are checked.
_used: dict[Use, bool] = {}
_masks_for_plan = False  # whether a packed row is computed now


def register() -> None:
    """Register `attn_implementation="dpo_packed"` with transformers."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)


class CannotPack(ModelError):
    """What a model does that packed rows cannot serve."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model {reason}: set train.layout: padded")
        self.reason = reason


@contextmanager
def packed_masks() -> Iterator[None]:
    """Within, the model's masks are those of a packed row (`_mask`)."""
    global _masks_for_plan
    _masks_for_plan = True
    try:
        yield
    finally:
        _masks_for_plan = False


def _mask(*, q_length: int, mask_function: Callable[..., Any], **arguments: Any) -> Tensor | None:
    """transformers' mask function. For a packed row, whose plan describes who sees whom, only the
    window is taken from the model's own rule; it is returned as a tensor (1, 1, 1, 1) on the CPU,
    0 for no window. Not every model also passes its window to the attention. Raises `CannotPack`
    if the rule is neither causal nor a causal window."""
    if not _masks_for_plan:
        mask: Tensor | None = sdpa_mask(q_length=q_length, mask_function=mask_function, **arguments)
        return mask
    keys = torch.arange(q_length)
    windows = []
    for query in (q_length // 2, q_length - 1):
        first = torch.tensor(0)
        seen = torch.as_tensor(mask_function(first, first, torch.tensor(query), keys))
        count = int(seen.sum())
        if not bool(seen[query + 1 - count : query + 1].all()):
            raise CannotPack("has attention that is neither causal nor a causal window")
        windows.append(count if count <= query else 0)
    if windows[0] not in (0, windows[1]):
        raise CannotPack("has attention that depends on the position")
    # On the CPU, reading it makes no host wait for a device.
    device = "meta" if torch.device(arguments["device"]).type == "meta" else "cpu"
    return torch.full((1, 1, 1, 1), windows[1], device=device)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pack: PackPlan | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, H, T, D), key (B, K, T, D), value (B, K, T, E),
    B = 1 with a plan; `s_aux` (H,) are attention sinks. Returns ((B, T, H, E), None). Packed rows
    have no attention dropout: DPO's rewards are differences of log-probs, which dropout would turn
    into noise."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if pack is None:
        if _masks_for_plan:
            raise CannotPack("does not pass its arguments on to its attention")
        if softcap is None and s_aux is None:
            out, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **kwargs
            )
            return out, None
        return dense_attention(query, key, value, attention_mask, scale, softcap, s_aux), None
    if attention_mask is None or attention_mask.dtype != torch.int64:
        raise CannotPack("builds its own attention mask")
    if kwargs.get("position_bias") is not None:
        raise CannotPack("adds a bias to its attention scores")
    if query.device.type == "meta":  # `trial`
        shape = (1, query.shape[2], query.shape[1], value.shape[-1])
        return query.new_empty(shape), None
    # The window of the mask is the one to obey: SDPA does not see the one that is passed as well.
    rule = Rule(scale, int(attention_mask) or None, softcap)
    query, key, value = _in_autocast_dtype(query, key, value)
    _remember(query, key, value, rule, s_aux is not None)
    out = attend(query[0], key[0], value[0], pack, rule, s_aux)
    return out.transpose(0, 1)[None].contiguous(), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, pack: PackPlan, rule: Rule, sinks: Tensor | None
) -> Tensor:
    """query (H, T, D), key (K, T, D), value (K, T, E) -> (H, T, E), with the kernel of the case."""
    out_width = value.shape[-1]
    # The kernels want one size; more zeros change neither products nor sums.
    width = max(query.shape[-1], out_width)
    if query.device.type == "cuda":
        width = -(-width // 8) * 8  # the flash kernel wants a multiple of 8
    query, key, value = (_widened(x, width) for x in (query, key, value))
    kernel = kernel_for(query.device.type, query.dtype, query.shape[-1], rule, sinks is not None)
    if kernel == "flash":
        return _varlen(query, key, value, pack, rule).transpose(0, 1)[..., :out_width]
    lse: Tensor | None
    if kernel == "flex":
        from dpo_dist.training import flex

        out, lse = flex.attend(query, key, value, pack.groups, rule, with_lse=sinks is not None)
    else:
        groups = flattened(pack.groups)
        out, lse = segment_attention(
            query, key, value, groups, rule.scale, rule.window, rule.softcap
        )
    out = out[..., :out_width]
    if sinks is None or lse is None:
        return out
    # A sink is one more score without a value: the other probabilities are multiplied by
    # exp(lse) / (exp(lse) + exp(sink)).
    return out * torch.sigmoid(lse - sinks[:, None].to(lse.dtype))[..., None].to(out.dtype)


def kernel_for(
    device: str, dtype: torch.dtype, width: int, rule: Rule, sinks: bool
) -> Literal["flash", "flex", "segment"]:
    """The kernel of a packed row: on a GPU the flash kernel if it can, else FlexAttention."""
    if device != "cuda" or dtype == torch.float64:
        return "segment"
    flash = dtype in _FLASH_DTYPES and width <= _FLASH_WIDTH and rule.softcap is None
    return "flash" if flash and not sinks else "flex"


def _widened(x: Tensor, width: int) -> Tensor:
    """(K, T, D) with zeros up to `width`."""
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention by its definition, with all scores in memory: query (B, H, N, D), key (B, K, M, D),
    value (B, K, M, E), `mask` (B, 1, N, M) true where a key is seen, None for causal. Returns
    (B, N, H, E)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        count, seen = scores.shape[-2:]
        mask = torch.ones(count, seen, dtype=torch.bool, device=query.device).tril(seen - count)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def trial(model: CausalLM) -> str | None:
    """Run a packed row through a copy of the model without weights; the reason why it cannot, or
    None. Some things only running it shows: masks of its own, a window that only its mask knows of,
    arguments that do not reach the attention. If the copy cannot run without weights (its
    operations depend on values), what follows remains for the first row."""
    register()
    with torch.device("meta"):
        copied = type(model)(copy.deepcopy(model.config)).to(torch.bfloat16)
    copied.config._attn_implementation = NAME
    ids = torch.arange(8).repeat(2, 1)
    ids[1, 4:] += 8
    ones = torch.ones_like(ids)
    pack = plan_packing(ids, ones, ones, [(0, 1)]).to("meta")
    row = {"position_ids": pack.positions[None], "attention_mask": ones.to("meta")[:1]}
    with torch.no_grad(), packed_masks(), suppress(Exception):
        try:
            copied.base_model(input_ids=pack.positions[None], use_cache=False, pack=pack, **row)
        except CannotPack as error:
            return error.reason
    return None


def _in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast does for SDPA, but not for lower-level kernels: with float32 weights the
    rotary embedding returns float32 queries and keys, while values are in bfloat16."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _varlen(query: Tensor, key: Tensor, value: Tensor, pack: PackPlan, rule: Rule) -> Tensor:
    """(T, H, D) by the flash kernel; its causal mask is aligned to the bottom right."""
    from torch.nn.attention.varlen import varlen_attn

    key, value = (x.transpose(0, 1).index_select(0, pack.key_source) for x in (key, value))
    out = varlen_attn(
        query.transpose(0, 1),
        key,
        value,
        pack.query_offsets,
        pack.key_offsets,
        pack.longest_query,
        pack.longest_key,
        scale=rule.scale,
        window_size=(rule.window - 1 if rule.window else -1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)
    return out


@dataclass(frozen=True)
class Use:
    """What a kernel was used for: a layer's real sizes, which a configuration need not tell."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    width: int
    value_width: int
    rule: Rule
    sinks: bool


def _remember(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sinks: bool) -> None:
    sizes = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
    _used.setdefault(Use(query.device, query.dtype, *sizes, rule, sinks), False)


def check_kernels() -> None:
    """Check every kernel that was used since the last call, in the sizes of the model's layers.
    Not in the layers themselves: activation checkpointing would record the check."""
    for use in [use for use, checked in _used.items() if not checked]:
        self_test(use)
        _used[use] = True


@torch.no_grad()
def self_test(use: Use) -> None:
    """Compare the kernel that training uses with the definition, on a small packed batch. A kernel
    with another mask alignment would compute the wrong attention without an error. Raises
    `RuntimeError` with the difference."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(40).repeat(2, 1)
    ids[1, 17:] += 100
    mask = torch.ones_like(ids)
    plan = plan_packing(ids, mask, mask, [(0, 1)]).to(use.device)
    length = len(plan.source)
    sizes = [(use.heads, use.width), (use.key_heads, use.width), (use.key_heads, use.value_width)]
    # A scale of any model: scores of about 1 would otherwise need a scale of D^-1/2.
    spread = (use.rule.scale * use.width**0.5) ** -0.5
    query, key, value = (
        torch.randn(1, heads, length, width, generator=generator).to(use.device, use.dtype)
        for heads, width in sizes
    )
    query, key = query * spread, key * spread
    sinks = torch.randn(use.heads, generator=generator).to(use.device) if use.sinks else None
    rule = use.rule
    with torch.autocast(use.device.type, enabled=False):
        out = attend(query[0], key[0], value[0], plan, rule, sinks).transpose(0, 1).float()
        group = plan.groups[0]
        begin = group.shared
        for branch in group.branches:
            rows = [*range(group.shared), *range(begin, begin + branch)]
            begin += branch
            ones = torch.ones(len(rows), len(rows), dtype=torch.bool, device=use.device)
            seen = ones.tril() if rule.window is None else ones.tril().triu(1 - rule.window)
            q, k, v = (x[:, :, rows].float() for x in (query, key, value))
            whole = dense_attention(q, k, v, seen[None, None], rule.scale, rule.softcap, sinks)[0]
            difference = (out[rows] - whole).abs().max().item()
            if not difference < 5e-2:
                raise RuntimeError(
                    f"packed attention on {use.device} ({use.dtype}) differs from its definition "
                    f"by {difference:.2g}; set train.layout: padded and report the torch and "
                    "driver versions"
                )
