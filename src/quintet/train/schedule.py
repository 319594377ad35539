"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from quintet.config.training import CosineConfig, LinearConfig, ScheduleConfig, WSDConfig


def learning_rate(schedule: ScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Rate of optimizer step ``step`` (1 is the first, ``steps`` the last) when ``highest`` is the optimizer's ``lr``.

    The rate rises as ``step / warmup_steps``, reaches ``highest`` with the last warm-up step, and ``min_lr`` with the
    last step of the decay. A rate below ``min_lr`` occurs in the warm-up only.
    """
    if step < schedule.warmup_steps:
        return highest * step / schedule.warmup_steps
    if isinstance(schedule, CosineConfig):
        remaining = 0.5 * (
            1 + math.cos(math.pi * _progress(step, schedule.warmup_steps, schedule.decay_steps or steps))
        )
    elif isinstance(schedule, LinearConfig):
        remaining = 1 - _progress(step, schedule.warmup_steps, schedule.decay_steps or steps)
    elif isinstance(schedule, WSDConfig):
        first = max(schedule.warmup_steps, steps - math.ceil(schedule.decay_fraction * steps))
        remaining = 1 - _progress(step, first, steps)
    else:
        return highest
    return schedule.min_lr + (highest - schedule.min_lr) * remaining


def _progress(step: int, first: int, last: int) -> float:
    """0 up to step ``first``, 1 from step ``last`` on, linear between."""
    return min(max((step - first) / max(last - first, 1), 0.0), 1.0)
