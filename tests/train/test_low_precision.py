from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import run_config
from torch import nn

from quintet.config.optimizer import AdamWConfig
from quintet.config.train import CheckpointConfig
from quintet.train.checkpoint import Checkpointer, Progress, checkpoint_path
from quintet.train.compute import Compute
from quintet.train.engine import load_training
from quintet.train.optimizer import build_optimizer, set_learning_rate, stochastically_rounded
from quintet.train.step import TorchEngine

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
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("to", list(TYPES.values()))
@given(value=st.floats(-7e4, 7e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-35))
def test_rounding_takes_one_of_the_two_numbers_around_and_is_right_on_average(to: torch.dtype, value: float) -> None:
    exact = torch.tensor(value, dtype=torch.float32)
    held = exact.to(to)
    torch.manual_seed(0)
    found = stochastically_rounded(exact.expand(4000), to).double()
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


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradient: float, scaler: torch.amp.GradScaler, seed: int
) -> None:
    torch.manual_seed(seed)
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
