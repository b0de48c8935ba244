"""Attention over packed rows, under a name registered with transformers.

A branch sees its group's shared prefix and itself. The function is registered with
`AttentionInterface`, so models need no change; without a plan it is plain SDPA.

Shapes: H query heads, K key heads, T packed positions, D the head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpo_dist.training.packing import PackPlan, plan_packing
from dpo_dist.training.segment_attention import flattened, segment_attention

NAME = "dpo_packed"


def register() -> None:
    """Register `attn_implementation="dpo_packed"` with transformers."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pack: PackPlan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, H, T, D), key and value (B, K, T, D), B = 1 with
    a plan. Returns ((B, T, H, D), None). Packed rows have no attention dropout: DPO's rewards are
    differences of log-probs, which dropout would turn into noise."""
    if pack is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = _in_autocast_dtype(query, key, value)
    if query.device.type == "cuda" and softcap is None and query.dtype in _VARLEN_DTYPES:
        return _varlen(query[0], key[0], value[0], pack, scale, sliding_window)[None], None
    groups = flattened(pack.groups)
    out, _ = segment_attention(query[0], key[0], value[0], groups, scale, sliding_window, softcap)
    return out.transpose(0, 1)[None], None


def _in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast does for SDPA, but not for lower-level kernels: with float32 weights the
    rotary embedding returns float32 queries and keys, while values are in bfloat16."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


_VARLEN_DTYPES = (torch.float16, torch.bfloat16)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, pack: PackPlan, scale: float, window: int | None
) -> Tensor:
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
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)
    return out


def self_test(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, dim: int
) -> None:
    """Compare the kernel that training will use with plain SDPA, on a small packed batch. A kernel
    with another mask alignment would compute the wrong attention without an error. Raises
    `RuntimeError` with the difference."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(40).repeat(2, 1)
    ids[1, 17:] += 100
    mask = torch.ones_like(ids)
    plan = plan_packing(ids, mask, mask, [(0, 1)]).to(device)
    length = len(plan.source)
    shapes = [(1, heads, length, dim), (1, key_heads, length, dim), (1, key_heads, length, dim)]
    query, key, value = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    out = packed_attention(torch.nn.Module(), query, key, value, None, pack=plan)[0][0].float()
    group = plan.groups[0]
    begin = group.shared
    for branch in group.branches:
        rows = [*range(group.shared), *range(begin, begin + branch)]
        begin += branch
        q, k, v = (x[:, :, rows].float() for x in (query, key, value))
        whole = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=heads != key_heads
        )[0].transpose(0, 1)
        difference = (out[rows] - whole).abs().max().item()
        if not difference < 5e-2:
            raise RuntimeError(
                f"packed attention on {device} ({dtype}) differs from SDPA by {difference:.2g}; "
                "set train.layout: padded and report the torch and driver versions"
            )
