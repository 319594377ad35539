"""PhyAGI: the keys of the transformers library's Trainer and of Lightning's, and what each of them changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.dialects.conftest import Made, Make, changes, each_changes
from tests.dialects.phyagi_runs import MODULE, PL, huggingface, lightning, optimized, rates, scheduled, unbuilt
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.helpers import refused
from torch import nn

from quintet.errors import UserError

DIALECT = "phyagi"

# The transformers library's Trainer.


def hf(make: Make, name: str, value: Any) -> Made:
    return huggingface(make, {name: value})


@changes("training_args.optim", "training_args.weight_decay")
def test_hf_optimizer(make: Make) -> None:
    assert type(huggingface(make).optimizer) is torch.optim.AdamW
    assert type(hf(make, "optim", "sgd").optimizer) is torch.optim.SGD
    decays = huggingface(make, {"weight_decay": 0.3}).optimizer.param_groups
    assert {group["weight_decay"] for group in decays} == {0.3, 0.0}  # biases and norms do not decay


@changes("training_args.adam_beta1", "training_args.adam_beta2")
def test_hf_betas(make: Make) -> None:
    made = huggingface(make, {"adam_beta1": 0.8, "adam_beta2": 0.85})
    assert tuple(made.optimizer.param_groups[0]["betas"]) == (0.8, 0.85)
    assert tuple(huggingface(make).optimizer.param_groups[0]["betas"]) == (0.9, 0.999)


@changes("training_args.lr_scheduler_type", "training_args.warmup_ratio", "training_args.warmup_steps")
def test_hf_schedule(make: Make) -> None:
    """The rates are those of the library's own scheduler."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=4)
    expected = []
    for _ in range(4):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    for warmup in ({"warmup_steps": 2}, {"warmup_ratio": 0.5}):
        made = huggingface(make, {"lr_scheduler_type": "cosine", **warmup})
        assert rates(made) == pytest.approx(expected)


@changes("training_args.lr_scheduler_kwargs")
def test_hf_schedule_arguments(make: Make) -> None:
    cycles = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.0}}
    assert rates(huggingface(make, cycles)) != pytest.approx(rates(hf(make, "lr_scheduler_type", "cosine")))


@changes("training_args.eval_strategy")
def test_hf_strategies(make: Make) -> None:
    assert huggingface(make).config.evaluate.every is None
    steps = huggingface(make, {"eval_strategy": "steps", "eval_steps": 2})
    assert steps.config.evaluate.every == 2
    assert huggingface(make, {"evaluation_strategy": "steps"}).config.evaluate.every == 1  # as logging_steps
    whole = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
    assert huggingface(make, whole).config.evaluate.every == 0.5
    with pytest.raises(UserError, match="counts epochs"):
        huggingface(make, {"eval_strategy": "epoch"})


@changes("training_args.save_strategy", "training_args.save_total_limit")
def test_hf_saves(make: Make) -> None:
    kept = huggingface(make, {"save_steps": 1, "save_total_limit": 2})
    assert kept.config.checkpoint.keep == 2
    assert hf(make, "save_strategy", "no").config.checkpoint.every is None
    assert not hf(make, "save_strategy", "no").config.checkpoint.at_end
    assert hf(make, "save_strategy", "epoch").config.checkpoint.every_epochs == 1.0


@changes("training_args.arguments")
def test_further(make: Make) -> None:
    made = hf(make, "log_level", "error")
    assert made.config.trainer.arguments == {"log_level": "error"}
    assert made.origin("trainer.arguments.log_level").startswith("training_args.log_level (line ")
    wrong = huggingface(make, {"log_levl": "error"})
    with pytest.raises(UserError, match="log_levl"):
        wrong.trained  # noqa: B018
    assert "is for trainer: huggingface or lightning" in refused(make, {"training_args.arguments": {"a": 1}})
    beside = huggingface(make, {"log_level": "error", "arguments": None})
    assert beside.config.trainer.arguments == {"log_level": "error"}
    with pytest.raises(UserError, match="arguments: must be a section of keys and values, found 3"):
        huggingface(make, {"log_level": "error", "arguments": 3})


# Lightning's Trainer.


@changes(f"{PL}.max_epochs", f"{PL}.max_steps")
def test_pl_length(make: Make) -> None:
    assert lightning(make, {"max_epochs": 1, "max_steps": -1}).run.steps == 16
    assert lightning(make, {"max_epochs": 1, "max_steps": 5}).run.steps == 5
    with pytest.raises(UserError, match="trains nothing"):
        lightning(make, {"max_steps": 0})


@changes(f"{PL}.precision")
def test_pl_precision(make: Make) -> None:
    for name, ours in (("bf16-mixed", "bf16"), ("16-mixed", "fp16"), (32, "fp32"), (16, "fp16")):
        assert lightning(make, {"precision": name}).config.train.precision == ours


@changes(f"{PL}.val_check_interval")
def test_pl_evaluation(make: Make) -> None:
    made = lightning(make, {"val_check_interval": 4, "accumulate_grad_batches": 2})
    assert made.config.evaluate.every == 2
    part = lightning(make, {"val_check_interval": 0.5, "max_epochs": 2, "max_steps": -1})
    assert part.config.evaluate.every == 0.25
    with pytest.raises(UserError, match="must be a multiple"):
        lightning(make, {"val_check_interval": 3, "accumulate_grad_batches": 2})


@changes(f"{PL}.check_val_every_n_epoch")
def test_pl_every_epochs(make: Make) -> None:
    made = lightning(make, {"check_val_every_n_epoch": 2, "max_epochs": 4, "max_steps": -1})
    assert made.config.evaluate.every == 0.5


@changes(f"{PL}.limit_val_batches")
def test_pl_limit(make: Make) -> None:
    few = lightning(make, {"limit_val_batches": 2, "val_check_interval": 1})
    assert few.config.evaluate.samples == 8
    assert lightning(make, {"limit_val_batches": 1.0, "val_check_interval": 1}).config.evaluate.samples is None
    assert lightning(make, {"limit_val_batches": 0, "val_check_interval": 1}).config.evaluate.every is None


@changes(f"{MODULE}.optimizer.type")
def test_pl_optimizer(make: Make) -> None:
    assert type(optimized(make, "adamw")) is torch.optim.AdamW
    assert type(optimized(make, "rprop")) is torch.optim.Rprop
    with pytest.raises(UserError, match="must be one of"):
        optimized(make, "muon")


@changes(f"{MODULE}.scheduler.type")
def test_pl_schedule(make: Make) -> None:
    assert rates(scheduled(make, "step", {"step_size": 2, "gamma": 0.1})) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    warm = scheduled(make, "warmup", {"warmup_max_lr": 0.1, "warmup_num_steps": 2, "warmup_type": "linear"})
    assert rates(warm)[-1] == 0.1
    with pytest.raises(UserError, match="must be one of"):
        scheduled(make, "lambda", {})


@changes(f"{MODULE}.scheduler.interval")
def test_pl_interval(make: Make) -> None:
    module = {"optimizer": {"type": "adamw"}, "scheduler": {"type": "step", "interval": "epoch", "params": {}}}
    with pytest.raises(UserError, match="must be one of step"):
        lightning(make, lightning_module=module)


@changes(f"{MODULE}.scheduler.params")
def test_pl_scheduler_parameters(make: Make) -> None:
    assert "step_siz" in unbuilt(scheduled(make, "step", {"step_siz": 2}))


def leaf(key: str) -> str:
    return key.rpartition(".")[2]


@each_changes(
    "values found",
    ("training_args.learning_rate", {0.5: 0.5}, lambda made: rates(made)[0]),
    ("training_args.per_device_train_batch_size", {3: (3, 16)}, lambda made: made.batch().inputs.shape),
    ("training_args.per_device_eval_batch_size", {3: 3}, lambda made: made.config.evaluate.batch_size),
    ("training_args.gradient_accumulation_steps", {2: (8, 16)}, lambda made: made.batch().inputs.shape),
    ("training_args.adam_epsilon", {1e-4: 1e-4}, lambda made: made.optimizer.param_groups[0]["eps"]),
    ("training_args.max_grad_norm", {0.5: 0.5, 0: None}, lambda made: made.config.train.clip_norm),
    ("training_args.bf16", {True: "bf16"}, lambda made: made.run.compute.precision),
    ("training_args.fp16", {True: "fp16"}, lambda made: made.config.train.precision),
    ("training_args.eval_on_start", {True: True}, lambda made: made.config.evaluate.at_start),
    ("training_args.label_smoothing_factor", {0.1: 0.1}, lambda made: made.config.loss.label_smoothing),
    ("training_args.torch_compile", {False: False, True: True}, lambda made: made.config.train.compile),
    ("training_args.use_cpu", {True: "cpu"}, lambda made: made.run.compute.device.type),
)
def test_an_argument_of_transformers(
    make: Make, key: str, values: dict[Any, Any], found: Callable[[Made], Any]
) -> None:
    for value, expected in values.items():
        assert found(hf(make, leaf(key), value)) == expected


@changes("training_args.train_micro_batch_size_per_gpu")
def test_train_micro_batch_size_per_gpu(make: Make) -> None:
    assert lightning(make, train_micro_batch_size_per_gpu=2).batch().inputs.shape == (2, 16)


@each_changes(
    "values found",
    (f"{PL}.log_every_n_steps", {2: 2}, lambda made: made.run.intervals.log_every),
    (f"{PL}.accumulate_grad_batches", {2: (8, 16)}, lambda made: made.batch().inputs.shape),
    (f"{PL}.gradient_clip_val", {0.5: 0.5}, lambda made: made.config.train.clip_norm),
    (f"{PL}.accelerator", {"cpu": "cpu", "gpu": "cuda"}, lambda made: made.config.train.device),
)
def test_an_argument_of_lightning(make: Make, key: str, values: dict[Any, Any], found: Callable[[Made], Any]) -> None:
    for value, expected in values.items():
        assert found(lightning(make, {leaf(key): value})) == expected


@changes(f"{PL}.gradient_clip_algorithm")
def test_gradient_clip_algorithm(make: Make) -> None:
    with pytest.raises(UserError, match="must be one of norm"):
        lightning(make, {"gradient_clip_algorithm": "value"})


@each_changes(
    "value",
    (f"{MODULE}.optimizer.params.lr", 0.5),
    (f"{MODULE}.optimizer.params.betas", (0.8, 0.9)),
    (f"{MODULE}.optimizer.params.eps", 1e-4),
    (f"{MODULE}.optimizer.params.weight_decay", 0.3),
)
def test_a_parameter_of_adamw(make: Make, key: str, value: Any) -> None:
    given = list(value) if isinstance(value, tuple) else value
    found = optimized(make, "adamw", **{leaf(key): given}).param_groups[0][leaf(key)]
    assert (tuple(found) if isinstance(value, tuple) else found) == value
