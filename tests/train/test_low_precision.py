from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import run_config
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.config.optimizer import AdamWConfig
from quintet.config.train import CheckpointConfig
from quintet.train.build import load_training
from quintet.train.checkpoint import Checkpointer
from quintet.train.checkpoint_files import Progress, checkpoint_path
from quintet.train.compute import Compute
from quintet.train.engine import TorchEngine
from quintet.train.optimizer import (
    LowPrecisionAdamW,
    build_optimizer,
    set_learning_rate,
    set_rounding,
    stochastically_rounded,
)

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def model_of() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))


def engine_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> TorchEngine:
    config = run_config()
    scaler, compute = torch.amp.GradScaler("cpu", enabled=False), Compute(torch.device("cpu"), "fp32", False, "test")
    return TorchEngine(model, model, optimizer, scaler, config, config.batch, compute)


def losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, scale: float = 1.0
) -> list[float]:
    """Losses of a regression from step ``first`` on, whose batches and random numbers follow from the step."""
    found = []
    for step in range(first, last):
        torch.manual_seed(step)
        inputs = torch.randn(64, 16)
        loss = (model(inputs)[:, 0] - inputs[:, :4].tanh().sum(1)).square().mean()
        optimizer.zero_grad()
        (scale * loss).backward()
        set_learning_rate(optimizer, 1e-2)
        set_rounding(optimizer, 3, step)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("to", list(TYPES.values()))
@given(value=st.floats(-7e4, 7e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-35))
def test_rounding_takes_one_of_the_two_numbers_around_and_is_right_on_average(to: torch.dtype, value: float) -> None:
    exact = torch.tensor(value, dtype=torch.float32)
    held = exact.to(to)
    found = stochastically_rounded(exact.expand(4000), to, torch.Generator().manual_seed(0)).double()
    if held.float() == exact:
        assert set(found.tolist()) == {value}
        return
    assert len(found.unique()) <= 2
    largest = torch.finfo(to).max
    if abs(value) >= largest:
        assert set(found.abs().tolist()) == {largest}
        return
    gap = max(abs(value) * torch.finfo(to).eps, torch.finfo(to).smallest_normal * torch.finfo(to).eps)
    assert (found - value).abs().max() <= gap
    assert abs(found.mean().item() - value) <= 0.05 * gap  # the mean of 4000 is within 0.008 of it


@pytest.mark.parametrize("precision", TYPES)
def test_averages_are_kept_in_16_bits_and_the_losses_are_near_those_of_fp32(precision: str) -> None:
    exact_model, model = model_of(), model_of()
    exact = losses(exact_model, build_optimizer(AdamWConfig(betas=(0.9, 0.999)), exact_model), 0, 200)
    optimizer = build_optimizer(AdamWConfig(betas=(0.9, 0.999), state_precision=precision), model)
    found = losses(model, optimizer, 0, 200)
    for state in optimizer.state.values():
        kept = {name: value for name, value in state.items() if value.dim()}
        assert len(kept) == 2
        assert {value.dtype for value in kept.values()} == {TYPES[precision]}
    assert sum(exact[-20:]) < 0.2 * sum(exact[:20])  # it learns
    assert sum(found[-20:]) == pytest.approx(sum(exact[-20:]), rel=0.03)
    assert found != exact


def test_fp16_holds_the_averages_of_gradients_whose_squares_it_does_not() -> None:
    """Gradients of 1e-5 have squares of 1e-10, which fp16 takes for 0; Adam does not care for the scale."""
    small, exact_model = model_of(), model_of()
    found = losses(small, build_optimizer(AdamWConfig(state_precision="fp16", eps=1e-15), small), 0, 100, 1e-3)
    exact = losses(exact_model, build_optimizer(AdamWConfig(eps=1e-15), exact_model), 0, 100, 1e-3)
    assert sum(found[-20:]) == pytest.approx(sum(exact[-20:]), rel=0.05)


@pytest.mark.parametrize("precision", TYPES)
def test_a_checkpoint_holds_the_averages_bit_for_bit(tmp_path: Path, precision: str) -> None:
    config = AdamWConfig(state_precision=precision)
    model = model_of()
    optimizer = build_optimizer(config, model)
    losses(model, optimizer, 0, 5)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(Progress(step=5), engine_of(model, optimizer).state())
    checkpointer.close()
    other = model_of()
    continued = build_optimizer(config, other)
    load_training(checkpoint_path(tmp_path, 5), engine_of(other, continued))
    for one, another in zip(optimizer.state.values(), continued.state.values(), strict=True):
        for name in one:
            assert one[name].dtype == another[name].dtype, name
            assert torch.equal(one[name], another[name]), name
    assert losses(model, optimizer, 5, 12) == losses(other, continued, 5, 12)


class Widened(TorchDispatchMode):
    """Counts the numbers that are copied from 16 bits to fp32."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.float32 and args[0].itemsize == 2:
            self.count += found.numel()
        return found


def test_loading_averages_takes_no_memory_of_fp32() -> None:
    """torch casts what it loads to the type of the weights: for a moment more than the whole state of fp32."""
    config, model = AdamWConfig(state_precision="bf16"), model_of()
    optimizer = build_optimizer(config, model)
    losses(model, optimizer, 0, 2)
    saved = optimizer.state_dict()
    continued = build_optimizer(config, model)
    with Widened() as widened:
        continued.load_state_dict(saved)
    assert widened.count == 0
    for one, other in zip(optimizer.state.values(), continued.state.values(), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    with Widened() as widened:
        torch.optim.AdamW([{"params": group["params"]} for group in optimizer.param_groups]).load_state_dict(saved)
    assert widened.count == 2 * sum(parameter.numel() for parameter in model.parameters())


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradient: float, scaler: torch.amp.GradScaler, seed: int
) -> None:
    set_rounding(optimizer, 3, seed)
    scaler.scale(torch.zeros(()))  # what a backward pass begins with
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient * scaler.get_scale())
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def test_with_a_scaled_loss_it_steps_alike_and_leaves_out_what_is_not_finite() -> None:
    """In fp16 the first steps usually overflow; the squares of these gradients also underflow in fp32."""
    config = AdamWConfig(state_precision="bf16", eps=1e-30)
    found = []
    for enabled in (False, True):
        model = model_of()
        optimizer = build_optimizer(config, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        advance(model, optimizer, 3.3e-22, scaler, seed=1)
        before = [{name: value.clone() for name, value in state.items()} for state in optimizer.state.values()]
        if enabled:
            advance(model, optimizer, float("inf"), scaler, seed=2)
            assert scaler.get_scale() == 2.0**9
            for state, earlier in zip(optimizer.state.values(), before, strict=True):
                assert all(torch.equal(state[name], earlier[name]) for name in state)
        advance(model, optimizer, 1.0, scaler, seed=3)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], next(model_of().parameters()))


def averages(seed: int, step: int, noise: int, shard: int = 0, part: int | None = None) -> list[torch.Tensor]:
    """AdamW's averages in bf16 after one step of two alike parameters, whoever drew ``noise`` numbers before; with
    ``part`` the parameters are parts of that number of DTensors over two processes, -1 for replicated ones."""
    gradient = torch.linspace(1, 2, 4000)
    values = [torch.zeros(4000) for _ in range(2)]
    if part is not None:
        dist.init_process_group("fake", store=FakeStore(), rank=abs(part), world_size=2)
        # DTensor remembers a mesh by what it consists of, which here is the same for both processes.
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(f"of {part}",))
        placed = [Replicate()] if part < 0 else [Shard(0)]
        values = [DTensor.from_local(value, mesh, placed, run_check=False) for value in values]
        gradient = DTensor.from_local(gradient, mesh, placed, run_check=False)
    model = nn.ParameterList(values)
    optimizer = LowPrecisionAdamW([{"params": list(model)}], torch.bfloat16, lr=1e-3)
    optimizer.shard = shard
    for parameter in model:
        parameter.grad = gradient
    torch.rand(noise)
    set_rounding(optimizer, seed, step)
    optimizer.step()
    found = [optimizer.state[p]["exp_avg"] for p in model]
    if part is not None:
        found = [value.to_local() for value in found]
        dist.destroy_process_group()
    return found


def test_what_is_drawn_follows_from_seed_step_parameter_and_part_alone() -> None:
    base = averages(1, 5, noise=0)
    assert torch.equal(averages(1, 5, noise=7)[0], base[0])
    assert torch.equal(averages(1, 5, 0, part=-1)[0], base[0])  # replicated: as in one process
    others = [averages(2, 5, 0), averages(1, 6, 0), base[::-1], averages(1, 5, 0, shard=1), averages(1, 5, 0, part=0)]
    others.append(averages(1, 5, 0, part=1))
    drawn = [base[0], *(one[0] for one in others)]
    for (i, one), (j, another) in product(enumerate(drawn), repeat=2):
        # Independent draws of a number between two others agree for about half of them.
        assert i == j or 0.3 < (one == another).double().mean() < 0.8, (i, j)


def test_over_the_steps_the_mean_of_what_is_kept_is_right() -> None:
    """0.1 · g lies between two numbers of bf16; over 300 steps each element is rounded up as often as it should."""
    exact = 0.1 * torch.linspace(1, 2, 4000).double()
    found = torch.stack([averages(1, step, 0)[0].double() for step in range(300)])
    gap = found.amax(0) - found.amin(0)
    error = ((found.mean(0) - exact) / gap.clamp_min(1e-9)).where(gap > 0, torch.zeros(()))
    assert error.abs().max() < 0.15  # 5 standard deviations of the mean of 300 draws
    assert abs(error.mean()) < 2e-3
