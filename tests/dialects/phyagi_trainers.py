"""What the keys of the other libraries' trainers change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.dialects.conftest import Made, Make
from tests.dialects.phyagi_runs import (
    huggingface,
    lightning,
    optimized,
    rates,
    scheduled,
    unbuilt,
)
from tests.helpers import refused
from torch import nn

from quintet.errors import UserError

# The transformers library's Trainer.


def hf(make: Make, name: str, value: Any) -> Made:
    return huggingface(make, {name: value})


def hf_optimizer(make: Make) -> None:
    assert type(huggingface(make).optimizer) is torch.optim.AdamW
    assert type(hf(make, "optim", "sgd").optimizer) is torch.optim.SGD
    decays = huggingface(make, {"weight_decay": 0.3}).optimizer.param_groups
    assert {group["weight_decay"] for group in decays} == {0.3, 0.0}  # biases and norms do not decay


def hf_betas(make: Make) -> None:
    made = huggingface(make, {"adam_beta1": 0.8, "adam_beta2": 0.85})
    assert tuple(made.optimizer.param_groups[0]["betas"]) == (0.8, 0.85)
    assert tuple(huggingface(make).optimizer.param_groups[0]["betas"]) == (0.9, 0.999)


def hf_schedule(make: Make) -> None:
    """The library's own schedules, asked directly."""
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


def hf_schedule_arguments(make: Make) -> None:
    cycles = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.0}}
    assert rates(huggingface(make, cycles)) != pytest.approx(rates(hf(make, "lr_scheduler_type", "cosine")))


def hf_strategies(make: Make) -> None:
    assert huggingface(make).config.evaluate.every is None
    steps = huggingface(make, {"eval_strategy": "steps", "eval_steps": 2})
    assert steps.config.evaluate.every == 2
    assert huggingface(make, {"evaluation_strategy": "steps"}).config.evaluate.every == 1  # as logging_steps
    whole = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
    assert huggingface(make, whole).config.evaluate.every == 0.5
    with pytest.raises(UserError, match="counts epochs"):
        huggingface(make, {"eval_strategy": "epoch"})


def hf_saves(make: Make) -> None:
    kept = huggingface(make, {"save_steps": 1, "save_total_limit": 2})
    assert kept.config.checkpoint.keep == 2
    assert hf(make, "save_strategy", "no").config.checkpoint.every is None
    assert not hf(make, "save_strategy", "no").config.checkpoint.at_end
    assert hf(make, "save_strategy", "epoch").config.checkpoint.every_epochs == 1.0


def further(make: Make) -> None:
    made = hf(make, "log_level", "error")
    assert made.config.trainer.arguments == {"log_level": "error"}
    assert made.origin("trainer.arguments.log_level").startswith("training_args.log_level (line ")
    wrong = huggingface(make, {"log_levl": "error"})
    with pytest.raises(UserError, match="log_levl"):
        wrong.trained  # noqa: B018
    assert "is for trainer: huggingface or lightning" in refused(make, {"training_args.arguments": {"a": 1}})


# Lightning's Trainer.


def pl_length(make: Make) -> None:
    assert lightning(make, {"max_epochs": 1, "max_steps": -1}).run.steps == 16
    assert lightning(make, {"max_epochs": 1, "max_steps": 5}).run.steps == 5
    with pytest.raises(UserError, match="trains nothing"):
        lightning(make, {"max_steps": 0})


def pl_precision(make: Make) -> None:
    for name, ours in (("bf16-mixed", "bf16"), ("16-mixed", "fp16"), (32, "fp32"), (16, "fp16")):
        assert lightning(make, {"precision": name}).config.train.precision == ours


def pl_evaluation(make: Make) -> None:
    made = lightning(make, {"val_check_interval": 4, "accumulate_grad_batches": 2})
    assert made.config.evaluate.every == 2
    part = lightning(make, {"val_check_interval": 0.5, "max_epochs": 2, "max_steps": -1})
    assert part.config.evaluate.every == 0.25
    with pytest.raises(UserError, match="give a multiple"):
        lightning(make, {"val_check_interval": 3, "accumulate_grad_batches": 2})


def pl_every_epochs(make: Make) -> None:
    made = lightning(make, {"check_val_every_n_epoch": 2, "max_epochs": 4, "max_steps": -1})
    assert made.config.evaluate.every == 0.5


def pl_limit(make: Make) -> None:
    few = lightning(make, {"limit_val_batches": 2, "val_check_interval": 1})
    assert few.config.evaluate.samples == 8
    assert lightning(make, {"limit_val_batches": 1.0, "val_check_interval": 1}).config.evaluate.samples is None
    assert lightning(make, {"limit_val_batches": 0, "val_check_interval": 1}).config.evaluate.every is None


def pl_optimizer(make: Make) -> None:
    assert type(optimized(make, "adamw")) is torch.optim.AdamW
    assert type(optimized(make, "rprop")) is torch.optim.Rprop
    with pytest.raises(UserError, match="none of those"):
        optimized(make, "muon")


def pl_group(make: Make, name: str, value: Any) -> Any:
    return optimized(make, "adamw", **{name: value}).param_groups[0][name]


def pl_schedule(make: Make) -> None:
    assert rates(scheduled(make, "step", {"step_size": 2, "gamma": 0.1})) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    warm = scheduled(make, "warmup", {"warmup_max_lr": 0.1, "warmup_num_steps": 2, "warmup_type": "linear"})
    assert rates(warm)[-1] == 0.1
    with pytest.raises(UserError, match="none of those"):
        scheduled(make, "lambda", {})


def pl_interval(make: Make) -> None:
    module = {"optimizer": {"type": "adamw"}, "scheduler": {"type": "step", "interval": "epoch", "params": {}}}
    with pytest.raises(UserError, match="must be one of step"):
        lightning(make, lightning_module=module)


def pl_scheduler_parameters(make: Make) -> None:
    assert "step_siz" in unbuilt(scheduled(make, "step", {"step_siz": 2}))
