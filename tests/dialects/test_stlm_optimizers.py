"""STLM: each key of the optimizer changes what its document says, and optimizers step as those of STLM's code."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from contextlib import chdir
from typing import Any, cast

import pytest
import torch
from tests.dialects.conftest import Made, Make, changes, each_changes
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import own, rates, refused, shapes
from tests.dialects.stlm_runs import place as place  # a fixture
from tests.helpers import PEAK
from torch import Tensor, nn

from quintet.config.dialects.stlm.values import OPTIMIZER_DEFAULTS
from quintet.config.optimizer import TorchOptimizerConfig
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.optimizer import build_optimizer, set_learning_rate

DIALECT = "stlm"
KEYS = "trainer.optimizer"
OLD = {
    f"{KEYS}.{name}": value for name, value in {"lr": 6e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}.items()
}
RATES = [6e-4 * share for share in (0.0, 0.5, 1.0, 0.7, 0.1)]


def optimizer_of(made: Made) -> TorchOptimizerConfig:
    return cast(TorchOptimizerConfig, made.config.optimizer)


def noted(made: Made, words: str) -> bool:
    return any(words in note for note in made.loaded.notes)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 4), nn.LayerNorm(4)
        draw = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=draw) for parameter in model.parameters()]


def stepped(made: Made) -> list[Tensor]:
    """The weights of a small model after steps with the optimizer of the file."""
    model = Small()
    optimizer = build_optimizer(made.config.optimizer, model)
    for step, rate in enumerate(RATES):
        set_learning_rate(optimizer, rate)
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@changes("trainer.optimizer.optimizer_name")
def test_optimizer_name(make: Make) -> None:
    def decays(name: str) -> list[int]:
        groups = make({"trainer.optimizer.optimizer_name": name}).optimizer.param_groups
        return sorted(len(group["params"]) for group in groups if group["weight_decay"])

    everything = len(shapes(make()))
    assert decays("AdamW") == decays("adamW") == [everything]
    assert decays("nanoGPTadamW") == [everything - 5]  # the gains of five norms
    sgd = make({"trainer.optimizer.optimizer_name": "sgd"}).optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert "found 'Sopa'" in refused(make, {"trainer.optimizer.optimizer_name": "Sopa"})


@changes("trainer.optimizer.params")
def test_optimizer_params(make: Make) -> None:
    params = {"lr": 0.25, "momentum": 0.5, "nesterov": True}
    group = make({"trainer.optimizer": {"name": "SGD", "params": params}}).optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
    assert "put it into them" in refused(make, {"trainer.optimizer": {"name": "SGD", "params": params, "lr": 1.0}})


@each_changes(
    "value read",
    ("trainer.optimizer.weight_decay", 0.3, lambda group: group["weight_decay"]),
    ("trainer.optimizer.beta1", 0.8, lambda group: group["betas"][0]),
    ("trainer.optimizer.beta2", 0.98, lambda group: group["betas"][1]),
)
def test_a_value_of_the_optimizer(make: Make, key: str, value: float, read: Callable[[dict[str, Any]], float]) -> None:
    assert {read(group) for group in make({key: value}).optimizer.param_groups} == {value}
    assert {read(group) for group in make().optimizer.param_groups} != {value}


@changes("trainer.optimizer.grad_clip")
def test_clip(make: Make) -> None:
    """Without a limit a step of SGD is the gradient; with a limit the limit is its length."""

    def step_length(limit: float) -> float:
        made = make(
            {
                "trainer.optimizer": {"name": "SGD", "params": {"lr": 1.0}, "grad_clip": limit},
                "trainer.lr_scheduler": "constant",
                "trainer.max_iters": 1,
            }
        )
        before = own(made).state_dict()
        with chdir(made.file.parent):
            after = train(made.config, Reporter(), peak_flops=PEAK).run.model.state_dict()
        return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))

    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert step_length(0) > 0.1


@changes("trainer.optimizer.lr")
def test_lr(make: Make) -> None:
    assert rates(make({"trainer.optimizer.lr": 3e-3}))[0] == 3e-3


@changes("trainer.optimizer.decoupled_weight_decay")
@pytest.mark.parametrize("decoupled", [True, False])
def test_lion_is_that_of_the_paper_and_its_decoupled_decay_is_whole_at_the_highest_rate(
    decoupled: bool, make: Make
) -> None:
    """Algorithm 2 of Chen et al. 2023; lion-pytorch, which STLM's class copies, divides a decoupled decay by `lr`."""
    made = make(OLD | {f"{KEYS}.optimizer_name": "lion", f"{KEYS}.decoupled_weight_decay": decoupled})
    lion = optimizer_of(made)
    assert (lion.name, lion.decay, lion.arguments) == ("Lion", "all", {"betas": [0.9, 0.95]})
    assert lion.weight_decay == pytest.approx(0.1 / 6e-4 if decoupled else 0.1)
    pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    weights = [parameter.detach() for parameter in Small().parameters()]
    averages = [torch.zeros_like(weight) for weight in weights]
    for step, rate in enumerate(RATES):
        for weight, average, gradient in zip(weights, averages, gradients(Small(), step), strict=True):
            weight *= 1 - (rate / 6e-4 if decoupled else rate) * 0.1
            weight -= rate * (0.9 * average + 0.1 * gradient).sign()
            average.mul_(0.95).add_(0.05 * gradient)
    for one, other in zip(stepped(made), weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@changes("trainer.optimizer.gradient_filter")
def test_the_grokfast_filter_adds_twice_the_average_of_gradients(make: Make) -> None:
    """Lee et al. 2024, algorithm 1 with the average of their code, before PyTorch's AdamW."""
    name = {f"{KEYS}.optimizer_name": "nanoGPTadamW"}
    made = make(OLD | name | {f"{KEYS}.gradient_filter": "grokfast_ema"})
    assert (optimizer_of(made).kind, optimizer_of(made).decay) == ("torch", "matrices")
    assert made.config.train.clip_norm == 1.0
    for none in ("None", "none", False, None):
        assert make(OLD | name | {f"{KEYS}.gradient_filter": none}).config == make(OLD | name).config
    assert "must be" in refused(make, {f"{KEYS}.gradient_filter": "grokfast_ma"})
    sgd = {f"{KEYS}.optimizer_name": "SGD", f"{KEYS}.gradient_filter": "grokfast_ema"}
    assert "works with AdamW and nanoGPTadamW only" in refused(make, sgd)
    pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    model = Small()
    matrices, others = [model.layer.weight], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    rule, averages = torch.optim.AdamW(groups, betas=(0.9, 0.95)), gradients(model, 0)
    for step, rate in enumerate(RATES):
        set_learning_rate(rule, rate)
        for index, (parameter, gradient) in enumerate(zip(model.parameters(), gradients(model, step), strict=True)):
            averages[index] = 0.98 * averages[index] + 0.02 * gradient
            parameter.grad = gradient + 2 * averages[index]
        rule.step()
    for one, other in zip(stepped(made), model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)


def test_adabelief_is_rectified_as_in_its_first_code(make: Make) -> None:
    library = pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    for name in ("ada_belief", "AdaBelief"):
        made, model = make(OLD | {f"{KEYS}.optimizer_name": name}), Small()
        rule = library.AdaBelief(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, rectify=True)
        for step, rate in enumerate(RATES):
            set_learning_rate(rule, rate)
            for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
                parameter.grad = gradient
            rule.step()
        for one, other in zip(stepped(made), model.parameters(), strict=True):
            assert torch.equal(one, other)


@changes("trainer.optimizer.momentum")
def test_a_momentum_is_read_by_the_classes_that_have_one(make: Make) -> None:
    shampoo = make(OLD | {f"{KEYS}.optimizer_name": "shampoo", f"{KEYS}.momentum": 0.5})
    optimizer = optimizer_of(shampoo)
    assert (optimizer.name, optimizer.arguments, optimizer.weight_decay) == ("Shampoo", {"momentum": 0.5}, 0.1)
    assert noted(shampoo, "beta1: Shampoo has no betas")
    assert noted(shampoo, "STLM's own shampoo cannot take a step")
    sgd = make({f"{KEYS}.optimizer_name": "SGD", f"{KEYS}.momentum": 0.5})
    assert sgd.optimizer.param_groups[0]["momentum"] == 0.5
    other = make({f"{KEYS}.momentum": 0.5, f"{KEYS}.decoupled_weight_decay": True})
    assert other.config == make().config
    assert noted(other, "momentum: STLM reads it with SGD, SGDP, RMSprop, Shampoo only")
    assert noted(other, "decoupled_weight_decay: STLM reads it with lion only")


def test_a_key_that_a_class_does_not_have_is_named_in_a_note(make: Make) -> None:
    rprop = make(OLD | {f"{KEYS}.optimizer_name": "rprop"})
    optimizer = optimizer_of(rprop)
    assert (optimizer.name, optimizer.weight_decay, optimizer.arguments) == ("Rprop", 0.0, {})
    assert noted(rprop, "weight_decay: Rprop has none")
    assert noted(rprop, "beta2: Rprop has no betas")
    assert type(rprop.optimizer) is torch.optim.Rprop
    assert type(make({f"{KEYS}.optimizer_name": "rprop"}).optimizer) is torch.optim.Rprop
    for name in ("SGD", "Adadelta", "Adafactor", "Adagrad", "ASGD", "RMSprop"):
        assert noted(made := make(OLD | {f"{KEYS}.optimizer_name": name}), f"beta1: {name} has no betas")
        assert made.optimizer.param_groups[0]["weight_decay"] == 0.1
    for name in ("Adam", "Adamax", "NAdam", "RAdam"):
        assert make(OLD | {f"{KEYS}.optimizer_name": name}).optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@changes("trainer.optimizer.betas")
def test_betas_are_beta1_and_beta2(make: Make) -> None:
    flat = make({f"{KEYS}.betas": [0.8, 0.98]})
    assert flat.config == make({f"{KEYS}.beta1": 0.8, f"{KEYS}.beta2": 0.98}).config
    assert "betas: repeats beta1 and beta2" in refused(make, {f"{KEYS}.betas": [0.8, 0.98], f"{KEYS}.beta1": 0.8})
    beside = {f"{KEYS}.params": {"lr": 1e-3}, f"{KEYS}.betas": [0.8, 0.98]}
    assert "betas: is not read with params; put it into them" in refused(make, beside)


def test_params_are_arguments_of_the_class_with_its_defaults(make: Make) -> None:
    soap = optimizer_of(make({"trainer.optimizer_name": "Soap", "trainer.optimizer_params": {"betas": [0.9, 0.98]}}))
    assert (soap.name, soap.decay) == ("SOAP", "all")
    assert (soap.lr, soap.weight_decay, soap.arguments) == (3e-3, 0.01, {"betas": [0.9, 0.98]})
    libraries: list[Any] = [torch.optim]
    if importlib.util.find_spec("pytorch_optimizer"):
        libraries.append(importlib.import_module("pytorch_optimizer"))
    classes = "AdamW Adadelta Adafactor Adagrad Adam Adamax ASGD NAdam RAdam RMSprop Rprop SGD AdaBelief DiffGrad Lion "
    for name in f"{classes} NovoGrad Ranger SGDP Shampoo SOAP Yogi".split():
        found = next((vars(library)[name] for library in libraries if name in vars(library)), None)
        if found is None:
            continue
        takes = inspect.signature(found).parameters
        decay = takes["weight_decay"].default if "weight_decay" in takes else 0.0
        assert OPTIMIZER_DEFAULTS.get(name, (1e-3, 0.0)) == (takes["lr"].default, decay), name
        assert optimizer_of(make({KEYS: {"name": name.lower(), "params": {}}})).lr == takes["lr"].default


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adam_mini", "shares averages by the names of the matrices"),
        ("Lookahead", "wraps another optimizer"),
        ("Ranger21", "has its own learning-rate schedule"),
        ("LBFGS", "computes the loss several times"),
        ("SparseAdam", "needs sparse gradients"),
    ],
)
def test_an_optimizer_that_no_run_can_have_is_refused_with_the_reason(name: str, reason: str, make: Make) -> None:
    sizes = {f"{KEYS}.{size}": 4 for size in ("hidden_dim", "n_heads", "n_kv_heads")}
    found = refused(make, sizes | {f"{KEYS}.optimizer_name": name})
    assert f"'{name}' {reason}" in found
    assert found.count("\n") == 0
    assert noted(make(sizes), "n_heads: only adam_mini asks for it")


def test_a_warm_up_that_is_longer_than_the_run_rises_to_its_end(make: Make) -> None:
    """The rate is `lr * step / warmup_iters`, with steps from 0, for every kind of schedule after the warm-up."""
    for more in ({}, {"trainer.decay_lr": False}, {"trainer.lr_decay_iters": 2}):
        made = make({"trainer.warmup_iters": 50, f"{KEYS}.lr": 0.5} | more)
        assert rates(made) == pytest.approx([0.5 * step / 50 for step in range(4)])
        assert noted(made, "trainer.warmup_iters: its 50 steps are more than the 4 of the run")
    assert made.origin("schedule.warmup_steps").startswith("trainer.warmup_iters")
    whole = make({"trainer.warmup_iters": 4})
    assert rates(whole) == pytest.approx([6e-4 * step / 4 for step in range(4)])
    assert whole.config.schedule.kind == "cosine"


def test_a_scheduler_may_be_named_by_the_key_of_its_section(make: Make) -> None:
    constant = make({"trainer.lr_scheduler": {"lr_scheduler": "constant"}})
    assert constant.config == make({"trainer.lr_scheduler": "constant"}).config
