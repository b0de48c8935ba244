"""The CPU LoRA operators against the definition, row by row in float64."""

import pytest
import torch

from dpo_dist.generation.cpu_lora import bgmv_expand, bgmv_expand_slice, bgmv_shrink

CASES = {
    "mixed": [0, 2, -1, 1, 2, 0, -1],
    "one adapter": [1] * 7,
    "none": [-1] * 7,
}


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("indices", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("extra_axis", [True, False])
def test_shrink(indices: list[int], extra_axis: bool) -> None:
    x, a = weights(7, 12), weights(3, 4, 12)
    out = torch.full((7, 6), 9.0, dtype=torch.float64)
    stored = a[:, None] if extra_axis else a
    bgmv_shrink(x, stored, out, torch.tensor(indices), 0.5)
    for row, adapter in enumerate(indices):
        expected = 0.5 * (a[adapter] @ x[row]) if adapter >= 0 else torch.zeros(4).double()
        torch.testing.assert_close(out[row, :4], expected)
    assert out[:, 4:].abs().max() == 0


@pytest.mark.parametrize("indices", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("add", [True, False])
def test_expand_and_its_slices(indices: list[int], add: bool) -> None:
    x, b, before = weights(7, 4), weights(3, 5, 4), weights(7, 9)
    for offset in (0, 3):
        out = before.clone()
        arguments = (x, b[:, None], out, torch.tensor(indices))
        if offset:
            bgmv_expand_slice(*arguments, offset, 5, add)
        else:
            bgmv_expand(*arguments, add)
        for row, adapter in enumerate(indices):
            expected = before[row].clone()
            if not add:
                expected[offset : offset + 5] = 0
            if adapter >= 0:
                expected[offset : offset + 5] += b[adapter] @ x[row]
            torch.testing.assert_close(out[row], expected)


def test_wider_adapters_than_the_layer_are_cut() -> None:
    x, b = weights(2, 4), weights(1, 8, 4)
    out = torch.zeros(2, 5, dtype=torch.float64)
    bgmv_expand(x, b, out, torch.tensor([0, 0]))
    torch.testing.assert_close(out, x @ b[0, :5].T)
