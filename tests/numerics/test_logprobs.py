"""The LM head against float64, in every kind of operands, and its branch for GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dpo_dist.training import logprobs
from dpo_dist.training.logprobs import OUTPUTS, Head, score_tokens

ROWS, HIDDEN, VOCABULARY = 300, 128, 1000
HEADS = {"plain": {}, "scaled": {"scale": 0.25}, "softcap": {"softcap": 30.0, "scale": 2.0}}


def operands(dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Logits of about 20, which bfloat16 would round to a multiple of 1/8. Half of the targets are
    likely, the others random."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=random).to(dtype)
    weight = 0.25 * torch.randn(VOCABULARY, HIDDEN, generator=random)
    weight = (weight + 0.15 * hidden.float().mean(0) / hidden.float().mean(0).std()).to(dtype)
    shift = torch.randn(VOCABULARY, generator=random) if bias else None
    targets = (hidden.double() @ weight.double().t()).topk(2).indices[:, 1]
    targets[::2] = torch.randint(VOCABULARY, (ROWS // 2,), generator=random)
    return hidden, weight, shift, targets


def definition(hidden: Tensor, head: Head, targets: Tensor) -> dict[str, Tensor]:
    """`score_tokens` from the full logits."""
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = (logits / head.softcap).tanh() * head.softcap
    log_probs = logits.log_softmax(-1)
    return {
        "log_probs": log_probs.gather(1, targets[:, None])[:, 0],
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
        "log_sum_sq_probs": (2 * log_probs).logsumexp(-1),
        "mean_logits": logits.mean(-1),
        "is_top1": logits.argmax(-1) == targets,
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.bfloat16, False, 1e-4),
        (torch.bfloat16, True, 1e-4),
        (torch.float32, False, 1e-4),
        (torch.float64, False, 1e-11),
    ],
)
def test_logits_keep_float32_whatever_the_operands(
    dtype: torch.dtype, autocast: bool, tolerance: float, kind: str, bias: bool
) -> None:
    hidden, weight, shift, targets = operands(dtype, bias=bias)
    head = Head(weight, shift, **HEADS[kind])
    exact = Head(weight.double(), None if shift is None else shift.double(), **HEADS[kind])
    expected = definition(hidden.double(), exact, targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = score_tokens(hidden, head, targets)
    for name in OUTPUTS[:-1]:
        assert found[name].dtype == torch.promote_types(dtype, torch.float32)
        difference = (found[name].double() - expected[name]).abs().max()
        assert difference < tolerance, (name, difference)
    assert torch.equal(found["is_top1"], expected["is_top1"])


def test_rounded_logits_would_be_seen() -> None:
    """The head that the other tests must not be satisfied with."""
    hidden, weight, _, targets = operands(torch.bfloat16, bias=False)
    exact = definition(hidden.double(), Head(weight.double(), None), targets)["log_probs"]
    logits = hidden @ weight.t()
    assert logits.abs().amax(-1).float().mean() > 10
    rounded = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (rounded - exact).abs().mean() > 1e-2


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-5), (torch.float64, 1e-12)]
)
def test_gradients_are_those_of_the_definition(
    dtype: torch.dtype, tolerance: float, kind: str, bias: bool, trained: bool
) -> None:
    """Relative errors of the norm; bfloat16 rounds probabilities and results once (2^-9)."""
    hidden, weight, shift, targets = operands(dtype, bias=bias)
    upstream = torch.randn(ROWS, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for score, to in ((score_tokens, dtype), (definition, torch.float64)):
        leaves = [hidden.detach().to(to).requires_grad_()]
        factors = [weight.detach().to(to), None if shift is None else shift.detach().to(to)]
        if trained:
            leaves += [f.requires_grad_() for f in factors if f is not None]
        values = score(leaves[0], Head(factors[0], factors[1], **HEADS[kind]), targets)
        (values["log_probs"] * upstream.to(values["log_probs"].dtype)).sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert ((ours.double() - exact).norm() / exact.norm()) < tolerance


def test_the_head_s_own_gradient_is_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, targets = operands(torch.float64, bias=False)
    gradients = []
    for rows in (logprobs.HEAD_ROWS, 300):
        monkeypatch.setattr(logprobs, "HEAD_ROWS", rows)
        trained = weight.clone().requires_grad_()
        score_tokens(hidden, Head(trained, None), targets)["log_probs"].sum().backward()
        gradients.append(trained.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Records products and the largest float32 matrix; refuses what a host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[tuple[torch.dtype, torch.dtype]] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        out = func(*args, **(kwargs or {}))
        if name == "aten::mm":
            self.products.add((args[0].dtype, out.dtype))
        if isinstance(out, Tensor) and out.dim() == 2 and out.dtype == torch.float32:
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_on_a_gpu_every_product_of_halves_is_float32_and_no_value_is_read(
    kind: str, trained: bool
) -> None:
    """The branch for other devices than a CPU, on the meta device, with an 8B model's head."""
    count, width, vocabulary = 3000, 4096, 128256
    hidden = torch.empty(count, width, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(vocabulary, width, dtype=torch.bfloat16, device="meta")
    bias = torch.empty(vocabulary, dtype=torch.float32, device="meta")
    targets = torch.zeros(count, dtype=torch.int64, device="meta")
    softcap, scale = HEADS[kind].get("softcap"), HEADS[kind].get("scale", 1.0)
    by_hidden = None if trained else torch.empty_like(hidden)
    with Watch() as seen:
        tiles = logprobs._Tiles(Head(weight, bias, softcap, scale), hidden, torch.bfloat16)
        values, is_top1 = logprobs._scores(tiles, hidden, targets, by_hidden)
        if trained:
            ctx = SimpleNamespace(
                saved_tensors=(hidden, weight, bias, targets), head=(softcap, scale, hidden.dtype)
            )
            gradients = logprobs._head_gradients(ctx, values[0])
            for gradient, leaf in zip(gradients, (hidden, weight, bias), strict=True):
                assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
                assert gradient.device.type == "meta"
    assert [(v.shape, v.dtype) for v in values] == [((count,), torch.float32)] * 4
    assert (is_top1.shape, is_top1.dtype) == ((count,), torch.bool)
    assert all(value.device.type == "meta" for value in (*values, is_top1))
    assert seen.products == {(torch.bfloat16, torch.float32)}
    allowed = 4 * vocabulary * width if trained else logprobs.TILE_BYTES
    assert seen.largest <= allowed


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_the_gpu_s_branch_computes_the_definition(
    kind: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reference in the place of the one product that a CPU lacks, and several tiles."""
    plain = torch.mm

    def mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16 and out_dtype == torch.float32
        product = plain(a.double(), b.double()).float()
        return product if out is None else out.copy_(product)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(logprobs, "_on_cpu", lambda tensor: False)
    monkeypatch.setattr(logprobs, "TILE_BYTES", 4 * VOCABULARY * 70)
    hidden, weight, shift, targets = operands(torch.bfloat16, bias=True)
    assert shift is not None
    exact = [x.double().requires_grad_() for x in (hidden, weight, shift)]
    leaves = [x.detach().clone().requires_grad_(trained or x is hidden) for x in (hidden, weight)]
    expected = definition(exact[0], Head(exact[1], exact[2], **HEADS[kind]), targets)
    found = score_tokens(leaves[0], Head(leaves[1], shift, **HEADS[kind]), targets)
    for name in OUTPUTS[:-1]:
        assert (found[name].double() - expected[name]).abs().max() < 1e-4, name
    expected["log_probs"].sum().backward()
    found["log_probs"].sum().backward()
    for ours, oracle in zip(leaves, exact[:2], strict=True):
        if ours.grad is not None and oracle.grad is not None:
            assert (ours.grad.double() - oracle.grad).norm() / oracle.grad.norm() < 1e-2
    assert (leaves[1].grad is not None) == trained
