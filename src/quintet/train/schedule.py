"""Learning rate, momentum and dropout as functions of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from quintet.config.schedule import (
    ConstantConfig,
    ConstantDropoutConfig,
    CosineConfig,
    DropoutScheduleConfig,
    LinearConfig,
    LinearDropoutConfig,
    NoDropoutScheduleConfig,
    PlateauConfig,
    ScheduleConfig,
    TorchScheduleConfig,
    TriangleDropoutConfig,
    WSDConfig,
)
from quintet.config.train import steps_of
from quintet.train.library_schedules import deepspeed_rate, torch_momentum, torch_rate, transformers_rate


def learning_rate(
    schedule: ScheduleConfig, highest: float, step: int, steps: int, plateau: Mapping[str, Any] | None = None
) -> float:
    """Return the learning rate of ``step``, from 1 to ``steps``, if ``highest`` is the optimizer's ``lr``.

    ``plateau`` is the state of a plateau schedule (see `after_validation`); all other kinds depend only on the step.
    Raises UserError if a library refuses the arguments of its schedule.
    """
    return SCHEDULES[schedule.kind](schedule, highest, step, steps, plateau or {})


def momentum(schedule: ScheduleConfig, highest: float, step: int, steps: int) -> float | None:
    """Return the momentum, or first beta, of ``step``; None if the schedule leaves the optimizer's own."""
    return torch_momentum(schedule, highest, step, steps) if isinstance(schedule, TorchScheduleConfig) else None


Rate = Callable[[Any, float, int, int, Mapping[str, Any]], float]
"""A function of the schedule's config, the optimizer's ``lr``, the step, all steps and the plateau's state."""


def _warmed(remaining: Callable[[Any, int, int, int], float]) -> Rate:
    """Return a schedule with a warm-up to the optimizer's ``lr``, and then ``min_lr`` plus the fraction ``remaining``.

    The warm-up rises as ``t / warmup_steps``, and the first step is t = ``first``. ``remaining`` is a function of
    config, t, warm-up steps and all steps.
    """

    def rate(schedule: Any, highest: float, step: int, steps: int, _: Mapping[str, Any]) -> float:
        time, warmup = step - 1 + schedule.first, steps_of(schedule.warmup_steps, steps)
        if time < warmup:
            return highest * time / warmup
        lowest = getattr(schedule, "min_lr", 0.0)
        return lowest + (highest - lowest) * remaining(schedule, time, warmup, steps)

    return rate


def _cosine(schedule: CosineConfig, time: int, warmup: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * _progress(time, warmup, schedule.decay_steps or steps)))


def _linear(schedule: LinearConfig, time: int, warmup: int, steps: int) -> float:
    return 1 - _progress(time, warmup, schedule.decay_steps or steps)


def _wsd(schedule: WSDConfig, time: int, warmup: int, steps: int) -> float:
    return 1 - _progress(time, max(warmup, steps - steps_of(schedule.decay_fraction, steps)), steps)


def _constant(schedule: ConstantConfig, time: int, warmup: int, steps: int) -> float:
    return 1.0


def _progress(time: int, first: int, last: int) -> float:
    """Return 0 up to ``first``, 1 from ``last`` on, and a linear function between."""
    return min(max((time - first) / max(last - first, 1), 0.0), 1.0)


_SMALLEST_CHANGE = 1e-8  # PyTorch omits smaller changes of the rate


def plateau_rate(config: PlateauConfig, highest: float, step: int, steps: int, state: Mapping[str, Any]) -> float:
    """Return the rate of ``step``: ``highest · step / warmup_steps`` in the warm-up, then that of ``state``."""
    warmup = steps_of(config.warmup_steps, steps)
    return highest * step / warmup if step < warmup else state.get("rate", highest)


def _of_step(rate: Callable[[Any, float, int, int], float]) -> Rate:
    """Return ``rate`` as a schedule without a plateau's state."""
    return lambda schedule, highest, step, steps, _: rate(schedule, highest, step, steps)


SCHEDULES: dict[str, Rate] = {
    "cosine": _warmed(_cosine),
    "linear": _warmed(_linear),
    "constant": _warmed(_constant),
    "wsd": _warmed(_wsd),
    "plateau": plateau_rate,
    "transformers": _of_step(transformers_rate),
    "deepspeed": _of_step(deepspeed_rate),
    "torch": _of_step(torch_rate),
}
"""The learning rate of each kind."""


def after_validation(
    config: PlateauConfig, highest: float, step: int, steps: int, state: Mapping[str, Any], loss: float
) -> dict[str, Any]:
    """Return the state after the validation ``loss`` of ``step``; before the first one it is {}.

    The state has the ``rate``, the ``best`` loss, the number of consecutive ``bad`` validations and the validations
    that are left of the ``cooldown``, as in torch.optim.lr_scheduler.ReduceLROnPlateau. Validations in the warm-up are
    ignored.
    """
    if step < steps_of(config.warmup_steps, steps):
        return dict(state)
    rate, best = state.get("rate", highest), state.get("best")
    bad, cooldown = state.get("bad", 0), state.get("cooldown", 0)
    if loss < (math.inf if best is None else best * (1 - config.threshold)):
        best, bad = loss, 0
    else:
        bad += 1
    if cooldown > 0:
        cooldown, bad = cooldown - 1, 0
    if bad > config.patience:
        lower = max(rate * config.factor, config.min_lr)
        rate = lower if rate - lower > _SMALLEST_CHANGE else rate
        cooldown, bad = config.cooldown, 0
    return {"rate": rate, "best": best, "bad": bad, "cooldown": cooldown}


def dropout_rate(config: DropoutScheduleConfig, step: int, steps: int) -> float | None:
    """Return the dropout rate of ``step``, from 1 to ``steps``; None if the model keeps its own rates."""
    return DROPOUT_SCHEDULES[config.kind](config, step, steps)


def _no_dropout_rate(config: NoDropoutScheduleConfig, step: int, steps: int) -> None:
    return None


def _constant_dropout(config: ConstantDropoutConfig, step: int, steps: int) -> float:
    return config.rate


def _linear_dropout(config: LinearDropoutConfig, step: int, steps: int) -> float:
    last, count = config.last_step or steps - 1 + config.first, step - 1 + config.first
    done = (count - config.first_step) / max(last - config.first_step, 1)
    return config.start + (config.end - config.start) * min(max(done, 0.0), 1.0)


def _triangle_dropout(config: TriangleDropoutConfig, step: int, steps: int) -> float:
    length = (config.steps or steps) // config.cycles
    count = step - 1 + config.first
    if not length or count > length * config.cycles:
        return config.low
    position = (count % length) / length
    return config.low + (config.high - config.low) * (1 - abs(2 * position - 1))


DROPOUT_SCHEDULES: dict[str, Callable[[Any, int, int], float | None]] = {
    "none": _no_dropout_rate,
    "constant": _constant_dropout,
    "linear": _linear_dropout,
    "triangle": _triangle_dropout,
}
"""The dropout rate of each kind, from its config, the step and all steps."""
