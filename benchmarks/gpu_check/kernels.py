"""Attention against its definition: the kernel that training uses, and softcaps."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import Scale, adapt_older_torch
from dpo_dist.training.packing import PackPlan, plan_packing

# Errors are relative to the largest exact value. bfloat16 has 8 bits; probabilities and their
# gradients are rounded to it once before each product. A wrong mask gives errors of about 1.
TOLERANCE = 2e-2
WHY = "a few roundings to bfloat16 (0.4 % each); a wrong mask or scale gives about 1"
# The block loop rounds products of queries and keys to bfloat16 before the cap.
LOOP_TOLERANCE = 6e-2
LOOP_WHY = "a score of 16 is rounded to 1/16, its probability by 6 %; a wrong mask gives about 1"
# (prompt, branches): two answers; one that is the beginning of the other, so that its branch has
# no position of its own; three answers; a long group, of several blocks of queries.
GROUPS = ((37, (20, 33)), (12, (1, 9)), (25, (14, 3, 40)), (150, (130, 90)))


@dataclass(frozen=True)
class Attention:
    """A configuration of attention: H query heads, K key heads, the head dimension."""

    heads: int
    key_heads: int
    dim: int
    window: int | None = None
    softcap: float | None = None

    @property
    def name(self) -> str:
        window = f", window {self.window}" if self.window else ""
        return f"{self.heads}/{self.key_heads} heads, D {self.dim}{window}"


def make_plan(groups: Sequence[tuple[int, Sequence[int]]], device: str) -> PackPlan:
    """A plan of groups of (prompt length, answer lengths); answers differ in their first token,
    except that an answer of length 1 is the beginning of the next one."""
    rows: list[tuple[int, list[int]]] = []
    members: list[range] = []
    for prompt, answers in groups:
        members.append(range(len(rows), len(rows) + len(answers)))
        for number, length in enumerate(answers):
            first = 1 if length == 1 or answers[number - 1] == 1 else 2 + number
            rows.append((prompt, [first] + [9] * (length - 1)))
    width = max(prompt + len(answer) for prompt, answer in rows)
    ids, mask, completion = torch.zeros(3, len(rows), width, dtype=torch.long)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, :prompt], mask[row, : prompt + len(answer)] = 8, 1
        ids[row, prompt : prompt + len(answer)] = torch.tensor(answer)
        completion[row, prompt : prompt + len(answer)] = 1
    return plan_packing(ids, mask, completion, members).to(device)


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: PackPlan, case: Attention
) -> Tensor:
    """(T, H, D) by the definition: every row alone, with all scores. query (H, T, D), key and value
    (K, T, D). Of a group's rows, the first one gives the output at the shared positions."""
    key, value = (x.repeat_interleave(len(query) // len(key), 0) for x in (key, value))
    outputs = []
    for group in plan.groups:
        begin = group.start + group.shared
        for number, length in enumerate(group.branches):
            rows = [*range(group.start, group.start + group.shared), *range(begin, begin + length)]
            begin += length
            q, k, v = query[:, rows], key[:, rows], value[:, rows]
            scores = q @ k.mT * case.dim**-0.5
            if case.softcap:
                scores = case.softcap * torch.tanh(scores / case.softcap)
            place = torch.arange(len(rows), device=query.device)
            back = place[:, None] - place
            hidden = (back < 0) | (back >= (case.window or len(rows)))
            out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
            outputs.append(out[:, 0 if number == 0 else group.shared :])
    return torch.cat(outputs, 1).transpose(0, 1)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (H, T, D), (K, T, D) twice -> (T, H, D)


def run_attention(attend: Attend, inputs: Sequence[Tensor], grad: Tensor | None) -> list[Tensor]:
    """The output and, with its gradient, the gradients by query, key and value."""
    leaves = [x.detach().clone().requires_grad_(grad is not None) for x in inputs]
    out = attend(*leaves)
    if grad is None:
        return [out]
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def packed(plan: PackPlan, case: Attention) -> Attend:
    """The trainer's attention."""
    from dpo_dist.training import attention
    from dpo_dist.training.segment_attention import Rule

    rule = Rule(case.dim**-0.5, case.window, case.softcap)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention.attend(query, key, value, plan, rule, None).transpose(0, 1)

    return attend


def random_inputs(
    case: Attention, length: int, dtype: torch.dtype, device: str
) -> tuple[list[Tensor], Tensor]:
    """(query, key, value), and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    heads = (case.heads, case.key_heads, case.key_heads)
    inputs = [
        torch.randn(h, length, case.dim, generator=generator).to(device, dtype) for h in heads
    ]
    return inputs, torch.randn(length, case.heads, case.dim, generator=generator).to(device, dtype)


def relative_errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """The largest error of each found tensor, relative to its largest exact value."""
    return [
        ((f.double() - e).abs().max() / e.abs().max()).item()
        for f, e in zip(found, exact, strict=False)
    ]


def compare_with_definition(
    case: Attention, plan: PackPlan, dtype: torch.dtype
) -> tuple[list[float], bool, bool]:
    """The errors of the trainer's output and gradients against float64, and whether a second run
    gives bitwise the same output, and the same gradients."""
    device = str(plan.source.device)
    inputs, grad = random_inputs(case, len(plan.source), dtype, device)
    found = run_attention(packed(plan, case), inputs, grad)
    again = run_attention(packed(plan, case), inputs, grad)
    exact = run_attention(
        lambda q, k, v: exact_attention(q, k, v, plan, case), [x.double() for x in inputs], grad
    )
    same = [torch.equal(a, b) for a, b in zip(found, again, strict=True)]
    return relative_errors(found, exact), same[0], all(same[1:])


def cases(quick_cpu: bool) -> list[Attention]:
    dims = (64,) if quick_cpu else (64, 128, 256)
    return [
        Attention(*heads, dim, window)
        for heads, dim, window in itertools.product(((8, 2), (32, 8)), dims, (None, 50))
    ]


def varlen(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 2."""
    if scale.on_gpu and (note := adapt_older_torch()):
        record.note(note)
    if not scale.on_gpu:
        record.note("on a CPU the trainer's kernel is segment_attention, not varlen")
    plan = make_plan(GROUPS, scale.device)
    assert any(0 in group.branches for group in plan.groups), "no branch without a position"
    worst, outputs_repeat, gradients_repeat = [0.0] * 4, True, True
    for case in cases(quick_cpu=not scale.on_gpu):
        errors, output, gradients = compare_with_definition(case, plan, torch.bfloat16)
        record.figure(f"{case.name}: largest relative error", max(errors))
        worst = [max(pair) for pair in zip(worst, errors, strict=True)]
        outputs_repeat, gradients_repeat = outputs_repeat and output, gradients_repeat and gradients
    for name, error in zip(("output", "query", "key", "value"), worst, strict=True):
        what = name if name == "output" else f"gradient by {name}"
        record.check(f"error of the {what}", error, most=TOLERANCE, why=WHY)
    record.check(
        "outputs are bitwise equal when repeated",
        outputs_repeat,
        least=1,
        why="the check of the first loss compares two forward passes of the same rows",
    )
    record.figure("gradients are bitwise equal when repeated", gradients_repeat)


def milliseconds(run: Callable[[], Any], scale: Scale, repeats: int = 5) -> float:
    """The median time of a run, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        scale.synchronize()
        started = time.perf_counter()
        run()
        scale.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[1:])


def softcap(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 10: the block loop that serves softcaps on any device, against FlexAttention."""
    from dpo_dist.training.segment_attention import flattened, segment_attention

    # The heads of Gemma 2 2B, and a micro-batch of four pairs.
    case = Attention(8, 4, 256, softcap=50.0) if scale.on_gpu else Attention(4, 2, 16, softcap=50.0)
    pair = (scale.prompt, (scale.answer, scale.answer + 5))
    plan = make_plan([pair] * (4 if scale.on_gpu else 2), scale.device)
    inputs, grad = random_inputs(case, len(plan.source), torch.bfloat16, scale.device)
    inputs[0] *= 5  # so that the cap changes the largest scores, of about 20, by 5 %
    exact = run_attention(
        lambda q, k, v: exact_attention(q, k, v, plan, case), [x.double() for x in inputs], grad
    )
    groups = flattened(plan.groups)

    def loop(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scaling = case.dim**-0.5
        out: Tensor = segment_attention(query, key, value, groups, scaling, None, case.softcap)[0]
        return out.transpose(0, 1)

    ways = {"block loop": loop, "FlexAttention": flex(plan, case, scale)}
    ways["the trainer's"] = packed(plan, case)
    times = {}
    for name, attend in ways.items():
        # FlexAttention has no backward on a CPU.
        by = grad if scale.on_gpu or name != "FlexAttention" else None
        run = functools.partial(run_attention, attend, inputs, by)
        limit = (TOLERANCE, WHY) if name == "FlexAttention" else (LOOP_TOLERANCE, LOOP_WHY)
        error = max(relative_errors(run(), exact))
        record.check(f"{name}: error", error, most=limit[0], why=limit[1])
        times[name] = milliseconds(run, scale)
        passes = "forward and backward" if by is not None else "forward"
        record.figure(f"{name}: ms, {passes}", times[name])
    if scale.on_gpu:
        record.check(
            "time of the trainer's kernel, of the fastest",
            times["the trainer's"] / min(times.values()),
            most=1.5,
            why="the trainer must not take the slow one of two kernels that it has",
        )


def flex(plan: PackPlan, case: Attention, scale: Scale) -> Attend:
    """The same attention by FlexAttention, compiled on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    group, branch = (torch.zeros_like(plan.source) for _ in range(2))
    for number, item in enumerate(plan.groups):
        end = item.start + item.shared
        for which, length in enumerate(item.branches, start=1):
            branch[end : end + length] = which
            end += length
        group[item.start : end] = number

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (branch[k] == 0) | (branch[k] == branch[q])
        return (k <= q) & (group[k] == group[q]) & own

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert case.softcap is not None
        return torch.tanh(score / case.softcap).mul(case.softcap)

    length = len(plan.source)
    mask = create_block_mask(sees, None, None, length, length, device=scale.device)
    run = torch.compile(flex_attention) if scale.on_gpu else flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x[None] for x in (query, key, value))
        out = run(q, k, v, score_mod=capped, block_mask=mask, scale=case.dim**-0.5, enable_gqa=True)
        assert isinstance(out, Tensor)
        return out[0].transpose(0, 1)

    return attend
