"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quintet.config.duration import steps_of
from quintet.config.schedule import (
    ConstantConfig,
    CosineConfig,
    DeepSpeedScheduleConfig,
    LinearConfig,
    PlateauConfig,
    ScheduleConfig,
    TorchScheduleConfig,
    TransformersScheduleConfig,
    WSDConfig,
)
from quintet.train.schedules.deepspeed import deepspeed_rate
from quintet.train.schedules.plateau import plateau_rate
from quintet.train.schedules.torch import torch_momentum, torch_rate
from quintet.train.schedules.transformers import transformers_rate


def learning_rate(
    schedule: ScheduleConfig, highest: float, step: int, steps: int, plateau: Mapping[str, Any] | None = None
) -> float:
    """Rate of optimizer step ``step`` (1 is the first, ``steps`` the last) when ``highest`` is the optimizer's ``lr``.

    ``plateau`` is what the validations so far have done to a schedule of that kind (see ``after_validation``); all
    others follow from the step alone. Raises UserError when a library refuses the arguments of its schedule.
    """
    match schedule:
        case PlateauConfig():
            return plateau_rate(schedule, highest, step, steps, plateau or {})
        case TransformersScheduleConfig():
            return transformers_rate(schedule, highest, step, steps)
        case DeepSpeedScheduleConfig():
            return deepspeed_rate(schedule, highest, step, steps)
        case TorchScheduleConfig():
            return torch_rate(schedule, highest, step, steps)
        case _:
            return _own_rate(schedule, highest, step, steps)


def momentum(schedule: ScheduleConfig, highest: float, step: int, steps: int) -> float | None:
    """Momentum, or the first beta, of ``step`` where the schedule cycles it; None where the optimizer's own holds."""
    return torch_momentum(schedule, highest, step, steps) if isinstance(schedule, TorchScheduleConfig) else None


def _own_rate(
    schedule: CosineConfig | LinearConfig | ConstantConfig | WSDConfig, highest: float, step: int, steps: int
) -> float:
    """The rate rises as ``t / warmup_steps``, where the first step is t = ``first``, and ``min_lr`` is reached at the
    last step of the decay, which is the run's last when t counts from 1. Below ``min_lr`` it is in the warm-up only."""
    time, warmup = step - 1 + schedule.first, steps_of(schedule.warmup_steps, steps)
    if time < warmup:
        return highest * time / warmup
    match schedule:
        case CosineConfig():
            remaining = 0.5 * (1 + math.cos(math.pi * _progress(time, warmup, schedule.decay_steps or steps)))
        case LinearConfig():
            remaining = 1 - _progress(time, warmup, schedule.decay_steps or steps)
        case WSDConfig():
            first = max(warmup, steps - steps_of(schedule.decay_fraction, steps))
            remaining = 1 - _progress(time, first, steps)
        case ConstantConfig():
            return highest
    return schedule.min_lr + (highest - schedule.min_lr) * remaining


def _progress(time: int, first: int, last: int) -> float:
    """0 up to ``first``, 1 from ``last`` on, linear between."""
    return min(max((time - first) / max(last - first, 1), 0.0), 1.0)
