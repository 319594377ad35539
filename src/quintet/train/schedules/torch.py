"""The schedules of torch.optim.lr_scheduler: their own classes are stepped once, ahead of the run."""

from __future__ import annotations

import inspect
import json
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from quintet.config.duration import steps_of
from quintet.config.optimizer import OptimizerConfig, TorchOptimizerConfig
from quintet.config.schedule import TorchScheduleConfig
from quintet.errors import UserError
from quintet.libraries import check_arguments, check_name, refusals_of

_OURS = {"optimizer": "", "last_epoch": ""}
_MOMENTUM = 0.9  # of an optimizer beside which the schedule is stepped; it never stays
_WARMUP_START = 0.01
# These need functions or other schedules, which a run file cannot hold, or a metric.
_NOT_FOR_A_FILE = (
    "LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "SequentialLR",
    "ChainedScheduler",
    "ReduceLROnPlateau",
)


def torch_rate(config: TorchScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Rate of ``step``, counted from 1, as the class sets it when it is stepped once after each step of the run."""
    return _steps_of_class(config, highest, steps)[step - 1][0]


def torch_momentum(config: TorchScheduleConfig, highest: float, step: int, steps: int) -> float | None:
    """Momentum, or first beta, of ``step``, as CyclicLR and OneCycleLR set it; None where the optimizer's own stays."""
    return _steps_of_class(config, highest, steps)[step - 1][1] if cycles_momentum(config) else None


def cycles_momentum(config: TorchScheduleConfig) -> bool:
    """Whether the class changes the momentum, which those that can do unless they are told not to."""
    parameter = inspect.signature(_classes()[config.name]).parameters.get("cycle_momentum")
    return parameter is not None and bool(config.arguments.get("cycle_momentum", parameter.default))


def check_torch_schedule(config: TorchScheduleConfig, optimizer: OptimizerConfig | None = None) -> None:
    """Raise UserError when torch has no such schedule for a run, or it does not take the arguments, or cycles the
    momentum of an ``optimizer`` that has none."""
    if config.name == "ReduceLROnPlateau":
        raise UserError("schedule.name: ReduceLROnPlateau follows the validation loss; it is schedule.kind: plateau")
    known = _classes()
    check_name("schedule.name", config.name, list(known), "torch.optim.lr_scheduler")
    check_arguments("schedule.arguments", config.name, known[config.name], config.arguments, _OURS)
    if isinstance(optimizer, TorchOptimizerConfig) and cycles_momentum(config):
        takes = inspect.signature(getattr(torch.optim, optimizer.name, object)).parameters
        if not {"momentum", "betas"} & set(takes):
            raise UserError(
                f"schedule.arguments.cycle_momentum: {config.name} cycles the momentum unless this is false, and "
                f"{optimizer.name} has none; set it to false"
            )


def _classes() -> dict[str, type]:
    return {
        name: found
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found)
        and issubclass(found, lr_scheduler.LRScheduler)
        and not name.startswith("_")
        and name not in _NOT_FOR_A_FILE
    }


def _steps_of_class(config: TorchScheduleConfig, highest: float, steps: int) -> list[tuple[float, float]]:
    warmup = steps_of(config.warmup_steps, steps)
    return _table(config.name, json.dumps(config.arguments, sort_keys=True), warmup, highest, steps)


@lru_cache(maxsize=8)
def _table(name: str, arguments: str, warmup: int, highest: float, steps: int) -> list[tuple[float, float]]:
    """Rate and momentum of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest, momentum=_MOMENTUM)
    chosen: Any = _classes()[name]
    given = json.loads(arguments)
    accepted = inspect.signature(chosen).parameters
    if "total_steps" in accepted and not {"total_steps", "epochs"} & set(given):
        given["total_steps"] = max(steps - warmup, 1)
    found = []
    with refusals_of("schedule.arguments", name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer itself is never stepped
        schedule = chosen(optimizer, **given)
        if warmup:
            before = LinearLR(optimizer, start_factor=_WARMUP_START, end_factor=1.0, total_iters=warmup)
            schedule = SequentialLR(optimizer, [before, schedule], milestones=[warmup])
        for step in range(steps):
            group = optimizer.param_groups[0]
            found.append((float(group["lr"]), float(group["momentum"])))
            if step < steps - 1:
                schedule.step()
    return found
