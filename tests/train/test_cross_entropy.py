"""The fused cross-entropy against PyTorch's, in value, gradients and memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.processes import Forked

from quintet.config.documents import IGNORED
from quintet.train.cross_entropy import Smoothing, cross_entropy, default_chunk, linear_cross_entropy

WIDTH, VOCAB = 16, 53


def problem(tokens: int, *, masked: float = 0.3, bias: bool = True, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    offset = torch.randn(VOCAB, generator=generator, requires_grad=True) if bias else None
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < masked] = IGNORED
    return hidden, weight, offset, targets


def reference(hidden, weight, bias, targets):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum", ignore_index=IGNORED)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_equals_torchs_cross_entropy_in_value_and_gradients(chunk: int, bias: bool) -> None:
    ours, theirs = problem(20, bias=bias), problem(20, bias=bias)
    loss = linear_cross_entropy(*ours, chunk=chunk)
    expected = reference(*theirs)
    (loss * 3.0).backward()
    (expected * 3.0).backward()
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, other.grad)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, bias, targets = problem(5)
    inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    loss = linear_cross_entropy(*inputs, targets, chunk=2)
    loss.backward()
    for tensor in inputs:
        index = (0,) * tensor.dim()
        shifted = [t.detach().clone() for t in inputs]
        position = next(i for i, t in enumerate(inputs) if t is tensor)
        shifted[position][index] += 1e-2
        above = reference(*shifted, targets).item()
        shifted[position][index] -= 2e-2
        below = reference(*shifted, targets).item()
        assert tensor.grad[index].item() == pytest.approx((above - below) / 2e-2, rel=2e-3, abs=2e-3)


def test_masked_targets_have_no_loss_and_no_gradient() -> None:
    hidden, weight, bias, targets = problem(12, masked=0.5)
    linear_cross_entropy(hidden, weight, bias, targets, chunk=5).backward()
    masked = targets == IGNORED
    assert masked.any()
    assert (hidden.grad[masked] == 0).all()
    assert (hidden.grad[~masked] != 0).any(dim=1).all()


def test_all_targets_masked_gives_zero_and_never_nan() -> None:
    hidden, weight, bias, _ = problem(6)
    loss = linear_cross_entropy(hidden, weight, bias, torch.full((6,), IGNORED), chunk=4)
    loss.backward()
    assert loss.item() == 0.0
    assert (weight.grad == 0).all()


def test_bf16_stays_within_rounding_of_fp32() -> None:
    hidden, weight, bias, targets = problem(256)
    expected = reference(hidden, weight, bias, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, targets, chunk=100)
    assert loss.dtype == torch.float32
    # The products are rounded to 8 bits; their sum over the tokens is not (torch's own chunked loss is off by 6 %).
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)


def test_value_does_not_depend_on_gradients_being_wanted() -> None:
    problem_ = problem(33)
    with torch.no_grad():
        without = linear_cross_entropy(*problem_, chunk=8)
    assert without.item() == linear_cross_entropy(*problem_, chunk=8).item()
    assert not without.requires_grad


def test_only_one_chunk_of_logits_is_in_memory() -> None:
    tokens, vocab, chunk = 2048, 8192, 64
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocab, WIDTH, requires_grad=True)
    targets = torch.randint(vocab, (tokens,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, None, targets, chunk=chunk).backward()
    largest = max(event.cpu_memory_usage for event in profile.events() or [])
    assert largest < tokens * vocab * 4 / 8


def test_default_chunk_fills_its_megabytes_or_keeps_128_tokens() -> None:
    assert default_chunk(65_536, "cuda") == 1024
    assert default_chunk(8_192, "cpu") == 1024
    assert default_chunk(10**9, "cuda") == 128


SMOOTHINGS = [Smoothing(labels=0.1), Smoothing(z=1e-2), Smoothing(labels=0.3, z=0.1)]


def by_the_formula(logits: torch.Tensor, targets: torch.Tensor, smoothing: Smoothing) -> torch.Tensor:
    """Cross-entropy against the smoothed target, and the squared log of the denominator, token by token."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, target in zip(logits, targets.tolist(), strict=True):
        if target == IGNORED:
            continue
        wanted = torch.full_like(row, smoothing.labels / len(row))
        wanted[target] += 1 - smoothing.labels
        denominator = row.exp().sum().log()
        total = total - (wanted * (row - denominator)).sum() + smoothing.z * denominator**2
    return total


@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=str)
@pytest.mark.parametrize("ids", [None, 13])
def test_smoothing_and_padding_follow_their_formulas_in_value_and_gradient(ids: int | None, smoothing) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, requires_grad=True)
    weight = torch.randn(16, 6, generator=generator, requires_grad=True)
    bias = torch.randn(16, generator=generator, requires_grad=True)
    targets = torch.randint(ids or 16, (11,), generator=generator)
    targets[[2, 5]] = IGNORED
    inputs = (hidden, weight, bias)
    expected = by_the_formula(F.linear(*inputs)[:, :ids], targets, smoothing)
    found = linear_cross_entropy(*inputs, targets, ids=ids, smoothing=smoothing, chunk=4)
    plain = cross_entropy(F.linear(*inputs)[:, :ids], targets, smoothing)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plain, expected)
    for mine, true in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)
    if ids is not None:
        gradient = torch.autograd.grad(linear_cross_entropy(*inputs, targets, ids=ids), weight)[0]
        assert not gradient[ids:].any()


def print_growth() -> None:
    """Take 120 steps of batches of many sizes and print by how many bytes the process has grown since the twentieth."""
    import psutil

    torch.manual_seed(0)
    weight, process, before = torch.randn(1241, 128, requires_grad=True), psutil.Process(), 0
    for step, size in enumerate((torch.randperm(700)[:120] + 100).tolist()):
        targets = torch.full((1600,), IGNORED)
        targets[torch.randperm(1600)[:size]] = 7
        hidden = torch.randn(1600, 128, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            linear_cross_entropy(hidden, weight, None, targets).backward()
        if step == 20:
            before = process.memory_info().rss
    print(process.memory_info().rss - before, flush=True)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_any_number_of_tokens_with_a_loss_equals_torchs_cross_entropy(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    targets = torch.full((300,), IGNORED)
    chosen = torch.randperm(300, generator=random)[:count]
    targets[chosen] = torch.randint(50, (count,), generator=random)
    hidden = torch.randn(300, 16, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=random, dtype=torch.float64, requires_grad=True)
    ours = linear_cross_entropy(hidden, weight, None, targets)
    theirs = F.cross_entropy(hidden[chosen] @ weight.T, targets[chosen], reduction="sum")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is measured on Linux")
def test_memory_does_not_grow_with_each_new_number(tmp_path: Path) -> None:
    # Without rounding the number of rows, a kernel for each number takes 200 MB if oneDNN multiplies bf16.
    with Forked(print_growth, folder=tmp_path) as process:
        done = process.finished()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6
