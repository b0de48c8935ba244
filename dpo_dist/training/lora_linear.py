"""LoRA's linear layer as one operation: y = x W^T + (x A^T) (sB)^T.

PEFT computes the low-rank product, scales it and adds it, each in a pass over an array of the
output's size, and autograd keeps the intermediate results. Here the product is accumulated into the
base layer's output, and likewise for the gradient by x. As one operation it can also be kept or
recomputed as a whole (activations.py).

Shapes: T positions, I inputs, O outputs, r the rank.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor

from dpo_dist.training import Context


@torch.library.custom_op("dpo_dist::lora_linear", mutates_args=())
def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """x (..., I), weight (O, I), bias (O,), down (r, I), up (O, r), which includes the scale -> y
    (..., O) and x down^T (T, r), which the backward needs."""
    rows = x.reshape(-1, x.shape[-1])
    low = rows.mm(down.t())
    out = torch.nn.functional.linear(rows, weight, bias).addmm_(low, up.t())
    return out.view(*x.shape[:-1], len(weight)), low


def _keep(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, down, up = inputs
    ctx.save_for_backward(x, weight, down, up, output[1])


def _gradients(ctx: Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by x, down and up; the base layer is frozen."""
    x, weight, down, up, low = ctx.saved_tensors
    rows, by_out = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    by_low = by_out.mm(up)
    by_x = None
    if ctx.needs_input_grad[0]:
        by_x = by_out.mm(weight).addmm_(by_low, down).view_as(x)
    return by_x, None, None, by_low.t().mm(rows), by_out.t().mm(low)


torch.library.register_autograd("dpo_dist::lora_linear", _gradients, setup_context=_keep)


def install(model: torch.nn.Module) -> None:
    """Let a PEFT model's LoRA layers run as one operation if they are plain (`_plain_adapter`)."""
    for layer in model.modules():
        if type(layer) is lora.Linear:
            layer.forward = types.MethodType(_forward, layer)


def _forward(layer: lora.Linear, x: Tensor, *args: object, **kwargs: object) -> Any:
    adapter = _plain_adapter(layer)
    if adapter is None or args or kwargs:
        return lora.Linear.forward(layer, x, *args, **kwargs)
    base = layer.get_base_layer()
    dtype = base.weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    up = layer.lora_B[adapter].weight * layer.scaling[adapter]
    return lora_linear(
        x.to(dtype),
        base.weight.to(dtype),
        None if base.bias is None else base.bias.to(dtype),
        layer.lora_A[adapter].weight.to(dtype),
        up.to(dtype),
    )[0]


def _plain_adapter(layer: lora.Linear) -> str | None:
    """The adapter of a layer that `lora_linear` can compute: a single active adapter without
    dropout, variants or bias, on a frozen base layer whose weights are not sharded."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    (name,) = active
    base, dropout = layer.get_base_layer(), layer.lora_dropout[name]
    modules = (base, layer.lora_A[name], layer.lora_B[name])
    plain = (
        name not in layer.lora_variant
        and (isinstance(dropout, torch.nn.Identity) or not dropout.training)
        and layer.lora_B[name].bias is None
        and not base.weight.requires_grad
        # FSDP and ZeRO-3 gather a weight when its module is called; here it is not called.
        and all(type(module) is torch.nn.Linear for module in modules)
        and not hasattr(base.weight, "ds_id")
    )
    return name if plain else None
