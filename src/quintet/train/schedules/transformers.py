"""The schedules of the transformers library, evaluated by its own functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from quintet.config.duration import steps_of
from quintet.config.schedule import TransformersScheduleConfig
from quintet.errors import UserError
from quintet.libraries import check_arguments, check_name, refusals_of, require

_OURS = {
    "optimizer": "",
    "last_epoch": "",
    "num_warmup_steps": "is schedule.warmup_steps",
    "num_training_steps": "is the number of steps of the run",
}
# These two follow a metric.
_NOT_OF_THE_STEP = ("reduce_lr_on_plateau", "greedy")


def transformers_rate(config: TransformersScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Rate of ``step``, counted from 1: ``highest`` times the library's factor, which counts steps from 0."""
    warmup = steps_of(config.warmup_steps, steps)
    factor = _factor(config.name, json.dumps(config.arguments, sort_keys=True), warmup, highest, steps)
    with refusals_of("schedule.arguments", config.name):
        return highest * factor(step - 1)


def check_transformers_schedule(config: TransformersScheduleConfig) -> None:
    """Raise UserError when the library has no such schedule for a run, or it does not take the arguments."""
    functions = _functions()
    if config.name == "reduce_lr_on_plateau":
        raise UserError("schedule.name: reduce_lr_on_plateau follows the validation loss; it is schedule.kind: plateau")
    known = [name for name in functions if name not in _NOT_OF_THE_STEP]
    check_name("schedule.name", config.name, known, "transformers.SchedulerType")
    if config.name == "constant" and config.warmup_steps:
        raise UserError("schedule.warmup_steps: constant has no warm-up; constant_with_warmup has")
    check_arguments("schedule.arguments", config.name, functions[config.name], config.arguments, _OURS)
    transformers_rate(config, 1.0, 1, 1000)  # the library says itself what it misses


def _functions() -> dict[str, Callable]:
    library = require("transformers.optimization", "hf", "schedule.kind: transformers")
    return {kind.value: function for kind, function in library.TYPE_TO_SCHEDULER_FUNCTION.items()}


@lru_cache(maxsize=8)
def _factor(name: str, arguments: str, warmup: int, highest: float, steps: int) -> Callable[[int], float]:
    """The function that the library's schedule multiplies the rate by. Some of them look at the optimizer's rate."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest)
    with refusals_of("schedule.arguments", name):
        found = get_scheduler(name, optimizer, warmup, steps, json.loads(arguments))
    assert isinstance(found, torch.optim.lr_scheduler.LambdaLR)
    return found.lr_lambdas[0]
