from __future__ import annotations

import copy

import torch
from torch import nn

from quintet.config.training import AdamWConfig
from quintet.train.optimizer import build_optimizer, step_if_finite


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


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    model = tiny()
    optimizer = build_optimizer(AdamWConfig(), model)
    set_gradients(model)
    assert step_if_finite(optimizer, torch.tensor(1.0)).item() == 0.0
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    set_gradients(model, float("nan"))
    assert step_if_finite(optimizer, torch.tensor(float("nan"))).item() == 1.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for index, averages in optimizer.state_dict()["state"].items():
        for name, tensor in averages.items():
            assert torch.equal(tensor, state[index][name]), (index, name)
