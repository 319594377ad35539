from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from quintet.config.optimizer import AdamWConfig, OptimizerConfig, TorchOptimizerConfig
from quintet.errors import UserError
from quintet.train.engine import step_if_finite
from quintet.train.library_optimizers import check_optimizer, check_sharded
from quintet.train.optimizer import (
    build_optimizer,
    set_learning_rate,
    set_momentum,
    state_bytes,
)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def set_gradients(model: nn.Module, value: float | None = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = (
            torch.randn(parameter.shape, generator=generator) if value is None else torch.full_like(parameter, value)
        )


def test_matrices_decay_and_vectors_do_not() -> None:
    model = tiny()
    decaying, free = build_optimizer(AdamWConfig(weight_decay=0.3), model).param_groups
    assert {tuple(p.shape) for p in decaying["params"]} == {(7, 4), (3, 4)}
    assert {tuple(p.shape) for p in free["params"]} == {(4,), (3,)}
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


def test_a_tied_or_frozen_parameter_is_optimised_once_or_never() -> None:
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    groups = build_optimizer(AdamWConfig(), model).param_groups
    assert [len(group["params"]) for group in groups] == [1]


def test_a_step_follows_the_published_formula() -> None:
    config = AdamWConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)
    model = tiny()
    before = [p.detach().double().clone() for p in model.parameters()]
    set_gradients(model)
    step_if_finite(build_optimizer(config, model), torch.tensor(1.0))
    for old, parameter in zip(before, model.parameters(), strict=True):
        gradient = parameter.grad.double()
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        # After one step the bias-corrected averages are the gradient and its square.
        expected = old - config.lr * (gradient / (gradient.abs() + config.eps) + decay * old)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)


NAMES: dict[str, dict[str, Any]] = {
    "AdamW": {"betas": [0.8, 0.99]},
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adagrad": {"lr_decay": 0.1},
    "RMSprop": {"alpha": 0.9, "centered": True},
    "Adamax": {},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {},
    "Adadelta": {"rho": 0.8},
    "Rprop": {"etas": [0.4, 1.3]},
    "ASGD": {"t0": 2.0},
    "Adafactor": {},
}


def named(name: str, **settings: Any) -> TorchOptimizerConfig:
    values = {"kind": "torch", "name": name, "lr": 0.05, "arguments": NAMES.get(name, {})} | settings
    return TorchOptimizerConfig.model_validate(values)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_torch_does_what_it_does_by_itself(name: str) -> None:
    config = named(name, **({} if name == "Rprop" else {"weight_decay": 0.1, "decay": "all"}))
    ours, theirs = tiny(), tiny()
    optimizer = build_optimizer(config, ours)
    decay = {} if name == "Rprop" else {"weight_decay": 0.1}
    reference = getattr(torch.optim, name)(theirs.parameters(), lr=0.05, **decay, **NAMES[name])
    for _ in range(4):
        for model in (ours, theirs):
            set_gradients(model)
        step_if_finite(optimizer, torch.tensor(1.0))
        reference.step()
    for one, other, start in zip(ours.parameters(), theirs.parameters(), tiny().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, start)


def test_all_decays_biases_norms_and_embeddings_too() -> None:
    for config in (AdamWConfig(weight_decay=0.3, decay="all"), named("SGD", weight_decay=0.3, decay="all")):
        [group] = build_optimizer(config, tiny()).param_groups
        assert {tuple(p.shape) for p in group["params"]} == {(7, 4), (3, 4), (4,), (3,)}
        assert group["weight_decay"] == 0.3
    decaying, free = build_optimizer(named("SGD", weight_decay=0.3), tiny()).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Adamw", {}, r"^optimizer.name: .* did you mean AdamW\? there are "),
        ("LBFGS", {}, r"^optimizer.name: torch.optim has no 'LBFGS' for a run"),
        (
            "SGD",
            {"arguments": {"momentun": 1}},
            r"^optimizer.arguments.momentun: .* did you mean momentum\? it has momen",
        ),
        (
            "SGD",
            {"arguments": {"betas": [0, 0]}},
            r"^optimizer.arguments.betas: SGD has no such argument; it has moment",
        ),
        ("Adam", {"arguments": {"lr": 1}}, r"^optimizer.arguments.lr: is optimizer.lr"),
        ("Adam", {"arguments": {"betas": [2, 0]}}, r"^optimizer.arguments: Adam refuses them: Invalid beta"),
        ("Rprop", {"weight_decay": 0.1}, r"^optimizer.weight_decay: Rprop has none"),
    ],
)
def test_what_the_class_does_not_know_is_refused_by_name(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(named(name, **settings), tiny())


def test_all_that_a_class_does_not_have_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        check_optimizer(named("Rprop", weight_decay=0.1, arguments={"betas": [0, 0], "step_size": 1}))
    assert [line.partition(":")[0] for line in error.value.problems] == [
        "optimizer.weight_decay",
        "optimizer.arguments.betas",
        "optimizer.arguments.step_size",
    ]


def test_bytes_of_the_state_are_those_of_the_averages() -> None:
    assert state_bytes(AdamWConfig()) == 8
    assert state_bytes(AdamWConfig(state_precision="bf16")) == 4
    assert state_bytes(named("SGD")) == 4
    assert state_bytes(named("SGD", arguments={})) == 0


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        set_gradients(model)
        assert step_if_finite(optimizer, torch.tensor(1.0)).item() == 0.0


@pytest.mark.parametrize(
    "config",
    [AdamWConfig(), AdamWConfig(state_precision="bf16"), *map(named, NAMES)],
    ids=["adamw", "adamw bf16", *NAMES],
)
@pytest.mark.parametrize("before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(config: OptimizerConfig, before: int) -> None:
    model = tiny()
    optimizer = build_optimizer(config, model)
    advance(model, optimizer, before)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    set_gradients(model, float("nan"))
    assert step_if_finite(optimizer, torch.tensor(float("nan"))).item() == 1.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for index, averages in state.items():
        for name, value in averages.items():
            found = optimizer.state_dict()["state"][index][name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, (index, name)


@pytest.mark.parametrize("config", [AdamWConfig(), *map(named, NAMES)], ids=["adamw", *NAMES])
def test_after_a_first_gradient_that_is_not_finite_all_goes_on_as_if_there_had_been_none(
    config: OptimizerConfig,
) -> None:
    model, other = tiny(), tiny()
    optimizer = build_optimizer(config, model)
    set_gradients(model, float("inf"))
    step_if_finite(optimizer, torch.tensor(float("inf")))
    advance(model, optimizer, 3)
    advance(other, build_optimizer(config, other), 3)
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another)


def test_a_rate_and_a_momentum_are_those_of_all_groups() -> None:
    for config, name in ((AdamWConfig(betas=(0.9, 0.98)), "betas"), (named("SGD"), "momentum")):
        optimizer = build_optimizer(config, tiny())
        set_learning_rate(optimizer, 0.25)
        set_momentum(optimizer, 0.5)
        assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
        assert [group[name] for group in optimizer.param_groups] == [(0.5, 0.98) if name == "betas" else 0.5] * 2


def test_what_a_class_decides_itself_is_left_to_it() -> None:
    fused = {name: build_optimizer(named(name), tiny()).param_groups[0].get("fused") for name in NAMES}
    assert {name for name, value in fused.items() if value} == {"Adam", "AdamW"}
    unfused = build_optimizer(named("AdamW", arguments={"foreach": True}), tiny())
    assert not unfused.param_groups[0]["fused"]


@pytest.fixture
def one_device() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", [name for name, found in vars(torch.optim).items() if inspect.isclass(found)])
def test_an_optimizer_that_cannot_step_sharded_weights_is_refused(name: str, one_device: DeviceMesh) -> None:
    config = TorchOptimizerConfig(kind="torch", name=name, weight_decay=0.0)
    try:
        check_optimizer(config)
    except UserError:
        return  # not for any run
    model = tiny()
    fully_shard(model, mesh=one_device)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    model(torch.arange(7)).square().sum().backward()
    try:
        optimizer.step()
    except RuntimeError:
        with pytest.raises(UserError, match=f"PyTorch's {name} cannot step weights"):
            check_sharded(config)
    else:
        check_sharded(config)
