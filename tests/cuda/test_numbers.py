"""Numbers of a GPU against fp64 or a run on the CPU: the head and its loss, attention by each mask, each precision."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.cuda.test_training import batch_of, config_of, engine_of, objective_of
from tests.model.test_kernels import LENGTH, MASKS, formula, ranges_of, seen, with_gradients
from torch import Tensor

from quintet.config.documents import IGNORED
from quintet.model import build_model
from quintet.model.kernels import attend, choose_kernel, prepare_mask
from quintet.model.mask import KeyRanges
from quintet.train.compute import Compute
from quintet.train.cross_entropy import Smoothing, linear_cross_entropy
from quintet.train.loss import LossModule

pytestmark = pytest.mark.timeout(600)


def error(found: Tensor, expected: Tensor) -> float:
    """The distance of two tensors as a share of the second."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize(
    ("rows", "ids", "smoothing", "chunk"),
    [(103, None, Smoothing(), 28), (128, 103, Smoothing(0.1, 1e-4), 50), (128, None, Smoothing(), 4096)],
)
def test_the_head_and_its_loss_are_those_of_fp64(
    device: torch.device, precision: str, limit: float, rows: int, ids: int | None, smoothing: Smoothing, chunk: int
) -> None:
    torch.manual_seed(0)
    given = [torch.randn(200, 64), 0.1 * torch.randn(rows, 64), torch.randn(rows)]
    targets = torch.randint(0, ids or rows, (200,))
    targets[::7] = IGNORED
    wide = [one.double().requires_grad_() for one in given]
    valid = targets != IGNORED
    hidden, weight, bias = wide
    logits = F.linear(hidden, weight, bias)[valid, : ids or rows]
    expected = F.cross_entropy(logits, targets[valid], reduction="sum", label_smoothing=smoothing.labels)
    expected = expected + smoothing.z * logits.logsumexp(-1).square().sum()
    there = [one.to(device).requires_grad_() for one in given]
    with Compute(device, precision, compile=False, reason="").autocast():
        one, two, three = there
        found = linear_cross_entropy(one, two, three, targets.to(device), ids=ids, smoothing=smoothing, chunk=chunk)
    expected.backward()
    found.backward()
    pairs = [(found, expected), *((one.grad, other.grad) for one, other in zip(there, wide, strict=True))]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert error(one, other) < limit


def inputs(kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries of 4 heads, keys and values with 32 features; FlexAttention on a GPU takes 16 at least."""
    torch.manual_seed(kv_heads)
    return [torch.randn(2, heads, LENGTH, 32, dtype=torch.float64).to(dtype) for heads in (4, kv_heads, kv_heads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", MASKS)
def test_attention_by_the_kernel_that_is_chosen_is_that_of_fp64(
    device: torch.device, name: str, kv_heads: int, dtype: torch.dtype
) -> None:
    """In training and without gradients, for which another kernel may be chosen."""
    ranges, narrow = ranges_of(MASKS[name]), inputs(kv_heads, dtype)
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    wide = [one.double().requires_grad_() for one in narrow]
    expected = with_gradients(formula(wide[0], wide[1], wide[2], seen(name), 0.3), wide)
    first, last = (None if part is None else part.to(device) for part in (ranges.first, ranges.last))
    there = KeyRanges(LENGTH, LENGTH, ranges.causal, first, last)
    for training in (True, False):
        tensors = [one.to(device).requires_grad_(training) for one in narrow]
        with torch.set_grad_enabled(training):
            kernel = choose_kernel(MASKS[name], there, device, dtype, cached=False, dropping=False)
            out = attend(tensors[0], tensors[1], tensors[2], prepare_mask(there, kernel, device), scale=0.3)
            found = with_gradients(out, tensors) if training else [out]
        for one, other in zip(found, expected, strict=False):
            assert error(one, other) < limit, kernel


@pytest.mark.parametrize("mask", ["causal", "causal_document"])
@pytest.mark.parametrize(("precision", "compile"), [("fp32", False), ("bf16", False), ("bf16", True), ("fp16", False)])
def test_losses_in_each_precision_are_near_those_of_fp32_on_a_cpu(
    device: torch.device, mask: str, precision: str, compile: bool
) -> None:
    if device.type == "cpu" and (compile or precision == "fp16"):
        pytest.skip("needs a GPU")
    cpu, found = torch.device("cpu"), list[list[float]]()
    for where, numbers in ((cpu, "fp32"), (device, precision)):
        config = config_of(cpu, model={"attention": {"heads": 2, "mask": mask}})
        model = build_model(config.model, 256, config.data.sequence_length, seed=1).to(where)
        for block in model.blocks if compile and where != cpu else ():
            block.compile()
        compute = Compute(where, numbers, compile=False, reason="")
        engine = engine_of(config, model, LossModule(model, objective_of(config)), compute)
        engine.scaler = torch.amp.GradScaler(where.type, enabled=numbers == "fp16")
        steps: list[float] = []
        for step in range(1, 6):
            steps.append(engine.accumulate(batch_of(config), step).item())
            engine.update(1e-3, step)
        found.append(steps)
    assert found[1] == pytest.approx(found[0], abs=1e-4 if precision == "fp32" else 5e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("changes", [{}, {"residual_dropout": 0.1}], ids=["plain", "dropout"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_waits_for_nothing_but_its_batch(changes: dict[str, Any], scaled: bool) -> None:
    """The arrays of this batch are not pinned, as those of a run are: two copies are waited for."""
    device = torch.device("cuda", 0)
    config = config_of(device, model=changes)
    model = build_model(config.model, 256, config.data.sequence_length, seed=1).to(device)
    compute = Compute(device, "fp16" if scaled else "bf16", compile=False, reason="")
    engine = engine_of(config, model, LossModule(model, objective_of(config)), compute)
    engine.scaler = torch.amp.GradScaler("cuda", enabled=scaled)
    for step in (1, 2, 3):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if step == 3 else "default")
            try:
                engine.accumulate(batch_of(config), step)
                engine.update(1e-3, step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(one.message) for one in warned) <= 2
