"""Steps of the optimizers of generated run files against torch's own classes with the same settings."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from quintet.config.optimizer import OptimizerConfig
from quintet.train.engine import step_if_finite
from quintet.train.optimizer import build_optimizer, set_learning_rate

SHAPES = ((3, 2), (4,), (), (2, 2, 2))
BETAS = st.tuples(st.floats(0, 0.99), st.floats(0.01, 0.999))
EPS = st.floats(1e-10, 1e-3)
FLAG = st.booleans()
TORCH: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": st.sampled_from([0.0, 0.5, 0.9]), "dampening": st.floats(0, 1), "maximize": FLAG},
    "Adam": {"betas": BETAS, "eps": EPS, "amsgrad": FLAG, "maximize": FLAG},
    "AdamW": {"betas": BETAS, "eps": EPS, "amsgrad": FLAG, "maximize": FLAG},
    "NAdam": {"betas": BETAS, "eps": EPS, "momentum_decay": st.floats(0, 0.1), "decoupled_weight_decay": FLAG},
    "RAdam": {"betas": BETAS, "eps": EPS, "decoupled_weight_decay": FLAG},
    "Adamax": {"betas": BETAS, "eps": EPS},
    "Adagrad": {"lr_decay": st.floats(0, 1), "initial_accumulator_value": st.floats(0, 1), "eps": EPS},
    "Adadelta": {"rho": st.floats(0.1, 0.99), "eps": EPS},
    "RMSprop": {"alpha": st.floats(0.1, 0.99), "eps": EPS, "momentum": st.floats(0, 0.9), "centered": FLAG},
    "ASGD": {"lambd": st.floats(0, 1e-3), "alpha": st.floats(0.1, 1), "t0": st.floats(0, 5)},
    "Adafactor": {"beta2_decay": st.floats(-0.9, -0.1), "d": st.floats(1, 3)},
    "Rprop": {"step_sizes": st.just((1e-6, 50.0))},
}
WITHOUT_DECAY = ("Rprop",)
CHOSEN = st.sampled_from(sorted(TORCH)).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries({}, optional=TORCH[name]))
)
RATES = st.lists(st.floats(1e-5, 0.1), min_size=1, max_size=6)
DECAY = st.sampled_from([0.0, 0.01, 0.3])


class Weights(nn.Module):
    """A matrix, a vector, a number and a cube, drawn from ``seed``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for index, shape in enumerate(SHAPES):
            self.register_parameter(f"p{index}", nn.Parameter(torch.randn(shape, generator=draw)))

    def draw_gradients(self, seed: int, bad: float | None = None) -> torch.Tensor:
        """Gradients of a step, one of them ``bad``, and their norm."""
        draw = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        if bad is not None:
            assert self.p0.grad is not None
            self.p0.grad[0, 0] = bad
        return nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])


def groups(model: nn.Module, decay: str, weight_decay: float) -> list[dict[str, Any]]:
    """What decays and what does not, by the number of dimensions."""
    every = list(model.parameters())
    matrices = [one for one in every if decay == "all" or one.dim() >= 2]
    others = [one for one in every if decay != "all" and one.dim() < 2]
    both = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def compare(values: dict[str, Any], reference: type, arguments: dict[str, Any], rates: list[float], bad: int) -> None:
    """Take the same steps with the optimizer of the run file ``values`` and with the class ``reference``, with a
    gradient that is not finite before step ``bad``, which the former leaves out and the latter never sees."""
    ours, theirs = Weights(1), Weights(1)
    config = TypeAdapter(OptimizerConfig).validate_python(values)
    optimizer = build_optimizer(config, ours)
    found = groups(theirs, config.decay, config.weight_decay)
    if reference.__name__ in WITHOUT_DECAY:
        found = [{"params": group["params"]} for group in found]
    other = reference(found, lr=config.lr, **arguments)
    for step, rate in enumerate(rates):
        set_learning_rate(optimizer, rate)
        for group in other.param_groups:
            group["lr"] = rate
        if step == bad:
            norm = ours.draw_gradients(1000 + step, bad=math.nan if step % 2 else math.inf)
            before = [one.detach().clone() for one in ours.parameters()]
            assert step_if_finite(optimizer, norm).item() == 1.0
            assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
        assert step_if_finite(optimizer, ours.draw_gradients(step)).item() == 0.0
        theirs.draw_gradients(step)
        other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@given(CHOSEN, RATES, DECAY, st.sampled_from(["matrices", "all"]), st.integers(-1, 5))
@example(("SGD", {"momentum": 0.9}), [0.1, 0.05, 0.1], 0.01, "matrices", 0)
def test_steps_are_those_of_torchs_classes(
    chosen: tuple[str, dict[str, Any]], rates: list[float], weight_decay: float, decay: str, bad: int
) -> None:
    name, arguments = chosen
    weight_decay = 0.0 if name in WITHOUT_DECAY else weight_decay
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    values = {"kind": "torch", "name": name, "lr": rates[0], "weight_decay": weight_decay, "decay": decay}
    compare(values | {"arguments": listed}, getattr(torch.optim, name), arguments, rates, bad)


@given(BETAS, EPS, RATES, DECAY, st.sampled_from(["matrices", "all"]), st.integers(-1, 5))
def test_steps_of_the_fused_adamw_are_those_of_the_plain_one(
    betas: tuple[float, float], eps: float, rates: list[float], weight_decay: float, decay: str, bad: int
) -> None:
    values = {"kind": "adamw", "lr": rates[0], "betas": betas, "eps": eps, "weight_decay": weight_decay, "decay": decay}
    compare(values, torch.optim.AdamW, {"betas": betas, "eps": eps, "foreach": False}, rates, bad)


@given(CHOSEN, RATES, st.integers(0, 5))
def test_an_optimizer_continues_from_its_state_bit_for_bit(
    chosen: tuple[str, dict[str, Any]], rates: list[float], cut: int
) -> None:
    name, arguments = chosen
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    values = {"kind": "torch", "name": name, "lr": rates[0], "arguments": listed}
    config = TypeAdapter(OptimizerConfig).validate_python(values)
    whole, parts = Weights(2), Weights(2)
    one, other = build_optimizer(config, whole), build_optimizer(config, parts)
    for step, rate in enumerate(rates):
        if step == cut:
            state, fresh = other.state_dict(), Weights(3)
            fresh.load_state_dict(parts.state_dict())
            parts, other = fresh, build_optimizer(config, fresh)
            other.load_state_dict(state)
        for model, optimizer in ((whole, one), (parts, other)):
            set_learning_rate(optimizer, rate)
            step_if_finite(optimizer, model.draw_gradients(step))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
