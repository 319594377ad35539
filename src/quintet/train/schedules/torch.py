"""The schedules of torch.optim.lr_scheduler: their own classes are stepped once, ahead of the run."""

from __future__ import annotations

import inspect
import json
import warnings
from functools import lru_cache
from typing import Any

from quintet.config.duration import steps_of
from quintet.config.schedule import TorchScheduleConfig
from quintet.errors import UserError
from quintet.train.schedules.arguments import check_arguments, check_name, refusals_of

_OURS = {
    "optimizer": "",
    "last_epoch": "",
    "base_momentum": "the momentum is not cycled",
    "max_momentum": "the momentum is not cycled",
}
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
    warmup = steps_of(config.warmup_steps, steps)
    return _table(config.name, json.dumps(config.arguments, sort_keys=True), warmup, highest, steps)[step - 1]


def check_torch_schedule(config: TorchScheduleConfig) -> None:
    """Raise UserError when torch has no such schedule for a run, or it does not take the arguments."""
    if config.name == "ReduceLROnPlateau":
        raise UserError("schedule.name: ReduceLROnPlateau follows the validation loss; it is schedule.kind: plateau")
    known = _classes()
    check_name("schedule.name", config.name, list(known), "torch.optim.lr_scheduler")
    if config.arguments.get("cycle_momentum"):
        raise UserError("schedule.arguments.cycle_momentum: the momentum is not cycled; leave it out")
    check_arguments("schedule.arguments", config.name, known[config.name], config.arguments, _OURS)


def _classes() -> dict[str, type]:
    from torch.optim import lr_scheduler

    return {
        name: found
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found)
        and issubclass(found, lr_scheduler.LRScheduler)
        and not name.startswith("_")
        and name not in _NOT_FOR_A_FILE
    }


@lru_cache(maxsize=8)
def _table(name: str, arguments: str, warmup: int, highest: float, steps: int) -> list[float]:
    """Rate of each step."""
    import torch
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest)
    chosen: Any = _classes()[name]
    given = json.loads(arguments)
    accepted = inspect.signature(chosen).parameters
    if "cycle_momentum" in accepted:
        given["cycle_momentum"] = False
    if "total_steps" in accepted and not {"total_steps", "epochs"} & set(given):
        given["total_steps"] = max(steps - warmup, 1)
    rates = []
    with refusals_of("schedule.arguments", name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer itself is never stepped
        schedule = chosen(optimizer, **given)
        if warmup:
            before = LinearLR(optimizer, start_factor=_WARMUP_START, end_factor=1.0, total_iters=warmup)
            schedule = SequentialLR(optimizer, [before, schedule], milestones=[warmup])
        for step in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            if step < steps - 1:
                schedule.step()
    return rates
