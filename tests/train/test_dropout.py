from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.config.model import TransformerConfig
from quintet.config.schedule import (
    ConstantDropoutConfig,
    LinearDropoutConfig,
    NoDropoutScheduleConfig,
    TriangleDropoutConfig,
)
from quintet.model import build_model
from quintet.model.dropout import KeyedDropout, dropped, follow_schedule, set_dropout, set_dropout_keys
from quintet.randomness import key
from quintet.train.model import checkpoint_activations
from quintet.train.schedule import dropout_rate


def rates(config, steps: int, shown: list[int]) -> list[float | None]:
    return [dropout_rate(config, step, steps) for step in shown]


def test_a_constant_rate_is_constant_and_without_a_schedule_there_is_none() -> None:
    assert rates(ConstantDropoutConfig(kind="constant", rate=0.2), 10, [1, 10]) == [0.2, 0.2]
    assert rates(NoDropoutScheduleConfig(), 10, [1, 10]) == [None, None]


def test_a_line_runs_between_its_steps_and_is_flat_outside() -> None:
    line = LinearDropoutConfig(kind="linear", start=0.1, end=0.5, first_step=10, last_step=30)
    assert rates(line, 100, [1, 10, 15, 20, 30, 100]) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.5, 0.5])
    whole = LinearDropoutConfig(kind="linear", start=0.4, end=0.0)
    assert rates(whole, 8, [0, 2, 8]) == pytest.approx([0.4, 0.3, 0.0])


def test_a_first_step_that_counts_as_0_has_each_rate_a_step_later() -> None:
    line = LinearDropoutConfig(kind="linear", start=0.0, end=1.0, first_step=1, last_step=3, first=0)
    assert rates(line, 4, [1, 2, 3, 4]) == [0.0, 0.0, 0.5, 1.0]
    whole = LinearDropoutConfig(kind="linear", start=0.0, end=0.9, first=0)
    assert rates(whole, 10, [1, 2, 10]) == pytest.approx([0.0, 0.1, 0.9])
    triangle = {"kind": "triangle", "low": 0.1, "high": 0.5, "cycles": 2, "steps": 8}
    later, plain = (TriangleDropoutConfig.model_validate(triangle | {"first": first}) for first in (0, 1))
    assert rates(later, 8, [2, 3, 4, 8]) == rates(plain, 8, [1, 2, 3, 7])


def test_a_triangle_goes_up_and_down_in_each_cycle_and_stays_low_after_them() -> None:
    triangle = TriangleDropoutConfig(kind="triangle", low=0.1, high=0.5, cycles=2, steps=17)
    # Two cycles of 8 steps, the half step that is left over being flat.
    assert rates(triangle, 40, [0, 2, 4, 6, 8, 10, 12, 16, 17, 40]) == pytest.approx(
        [0.1, 0.3, 0.5, 0.3, 0.1, 0.3, 0.5, 0.1, 0.1, 0.1]
    )
    assert rates(TriangleDropoutConfig(kind="triangle", high=0.4), 8, [4, 8]) == pytest.approx([0.4, 0.0])


def test_every_dropout_of_the_model_gets_the_rate() -> None:
    config = TransformerConfig.model_validate({"layers": 2, "width": 32, "residual_dropout": 0.3})
    model = build_model(config, 20, 8, seed=0)
    set_dropout(model, 0.45)
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    # In each block: into attention, its weights, the residual, into the feed-forward network, its hidden features.
    assert found == [0.45] * (2 * 5 + 2)
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids), model(ids))


def masks(keys: torch.Tensor, rate: float = 0.1, shape: tuple[int, ...] = (64, 96)) -> np.ndarray:
    return dropped(keys, (len(keys), *shape), rate).numpy()


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_keyed_mask_drops_its_part_evenly_and_independently(rate: float) -> None:
    """z-scores of what is dropped of each sample, position and feature, and of pairs of neighbours and of keys."""
    dropout = nn.ModuleList([KeyedDropout(0.5), KeyedDropout(0.5)])
    found = []
    for step in range(3):
        set_dropout_keys(dropout, key(1, "dropout", step), first=5, samples=40, device=torch.device("cpu"))
        found += [masks(own, rate) for module in dropout for own in module.keys]
    every = np.stack(found).astype(float)  # [modules and calls and steps, samples, positions, features]
    if rate == 0.0:
        assert not every.any()
        return
    sigma = np.sqrt(rate * (1 - rate))
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        scores = (every.mean(axes) - rate) / (sigma / np.sqrt(every.size / every.mean(axes).size))
        assert np.abs(scores).max() < 5
        assert 0.5 < np.square(scores).mean() < 1.6
    centred = (every - rate) / sigma
    for axis in range(4):
        for shift in (1, 2, 3, 8):
            a = centred.take(range(shift, centred.shape[axis]), axis) if shift < centred.shape[axis] else centred[:0]
            b = centred.take(range(centred.shape[axis] - shift), axis) if a.size else a
            assert not a.size or abs((a * b).mean()) * np.sqrt(a.size) < 5


def test_the_rows_of_a_mask_are_those_of_its_samples() -> None:
    modules = nn.ModuleList([KeyedDropout(0.3), KeyedDropout(0.3)])
    set_dropout_keys(modules, key(1, "dropout", 7), 0, 12, torch.device("cpu"))
    whole = [masks(own) for module in modules for own in module.keys]
    for first, count in ((0, 5), (5, 1), (6, 6)):
        set_dropout_keys(modules, key(1, "dropout", 7), first, count, torch.device("cpu"))
        parts = [masks(own) for module in modules for own in module.keys]
        assert all(np.array_equal(a[first : first + count], b) for a, b in zip(whole, parts, strict=True))


class Sent(TorchDispatchMode):
    """Counts the tensors that are copied from one kind of device to another."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [one.device.type for one in (*args, found) if isinstance(one, torch.Tensor)]
        self.count += "copy" in str(func) and len(set(given)) > 1
        return found


def test_the_keys_of_a_pass_are_made_on_its_device() -> None:
    """A copy from the host would wait for all that a GPU has still to do, at each micro-batch."""
    module, device = KeyedDropout(0.5), torch.device("meta")
    with Sent() as sent:
        set_dropout_keys(module, 2**62 + 5, 3, 4, device)
    assert sent.count == 0
    assert module.keys is not None
    assert (module.keys.shape, module.keys.device) == ((2, 4), device)
    with Sent() as sent:
        torch.ones(2).to(device)
    assert sent.count == 1


def test_what_several_layers_share_does_not_drop_the_same_in_each() -> None:
    config = TransformerConfig.model_validate(
        {"layers": 3, "width": 32, "tie_feedforward": True, "feedforward": {"kind": "gated", "dropout": 0.5}}
    )
    model = build_model(config, 20, 8, seed=0)
    set_dropout_keys(model, 1, 0, 2, torch.device("cpu"))
    keys = [module.keys for module in model.modules() if isinstance(module, KeyedDropout) and module.p]
    assert len(keys) == 3
    assert len(torch.cat([own.flatten() for own in keys]).unique()) == 3 * keys[0].numel()


@pytest.mark.parametrize("how", [1, 2, "selective"])
def test_a_block_that_is_computed_again_drops_the_same(how: int | str) -> None:
    config = TransformerConfig.model_validate(
        {"layers": 3, "width": 32, "attention": {"heads": 2, "backend": "sdpa"}, "residual_dropout": 0.3}
    )
    found = []
    for way in ("none", how):
        model = build_model(config, 20, 8, seed=0)
        checkpoint_activations(model.blocks, way)  # pyright: ignore[reportArgumentType]
        set_dropout_keys(model, 1, 0, 4, torch.device("cpu"))
        torch.manual_seed(len(found))
        model(torch.arange(32).reshape(4, 8) % 20).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


@pytest.mark.slow
def test_a_compiled_pass_drops_what_an_eager_one_does() -> None:
    dropout = KeyedDropout(0.3)
    compiled, x = torch.compile(dropout, fullgraph=True), torch.ones(4, 6, 16)
    for step in range(4):
        set_dropout_keys(dropout, step, 0, 4, torch.device("cpu"))
        assert torch.equal(compiled(x, 1), dropout(x, 1))
        assert not torch.equal(compiled(x, 0), compiled(x, 1))


EVERYWHERE = {
    "layers": 2,
    "width": 32,
    "attention": {"heads": 2, "dropout": 0.2, "input_dropout": 0.2},
    "feedforward": {"kind": "gated", "dropout": 0.2},
    "residual_dropout": 0.2,
    "embedding_dropout": 0.2,
}


def losses_of(rates: list[float], *, scheduled: bool, compiled: bool, changes: dict[str, Any]) -> list[float]:
    """A loss and its gradient for each of ``rates``, all as one number."""
    model = build_model(TransformerConfig.model_validate(EVERYWHERE | changes), 20, 8, seed=0)
    ids = torch.arange(32).reshape(4, 8) % 20
    if scheduled:
        follow_schedule(model, torch.device("cpu"))
    if compiled:
        for block in model.blocks:
            block.compile(backend="aot_eager")
    found = []
    for step, rate in enumerate(rates):
        set_dropout(model, rate)
        torch.manual_seed(step)
        set_dropout_keys(model, step, 0, 4, torch.device("cpu"))
        model.zero_grad()
        loss = model(ids).square().mean()
        loss.backward()
        found += [loss.item(), *(p.grad.double().sum().item() for p in model.parameters() if p.grad is not None)]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"layers": 1}, id="one block"),
        pytest.param({}, id="all", marks=pytest.mark.slow),
        pytest.param({"tie_feedforward": True}, id="shared", marks=pytest.mark.slow),
        pytest.param({"attention": {"heads": 2}}, id="at first none", marks=pytest.mark.slow),
    ],
)
def test_a_schedule_compiles_a_block_once_and_drops_what_eager_steps_do(changes: dict[str, Any]) -> None:
    """From no dropout to all of it: how often dynamo compiles does not depend on how many rates there are."""
    rates, graphs = [0.0, 0.1, 0.2, 0.5, 0.1, 1.0], []
    for some in (rates[:1], rates):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        found = losses_of(some, scheduled=True, compiled=True, changes=changes)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
    eager = losses_of(rates, scheduled=True, compiled=False, changes=changes)
    assert found == pytest.approx(eager, rel=1e-4, abs=1e-6)
    # Without a schedule the rate is a number, of which each new one is compiled; what is dropped is the same.
    plain = losses_of(rates, scheduled=False, compiled=False, changes=changes)
    assert eager == pytest.approx(plain, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_without_a_schedule_each_new_rate_is_compiled() -> None:
    """The test above counts what it means to count."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses_of([0.1, 0.2, 0.3], scheduled=False, compiled=True, changes={"layers": 1})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
