"""The rate of every dropout of a model as a function of the step."""

from __future__ import annotations

from quintet.config.schedule import (
    ConstantDropoutConfig,
    DropoutScheduleConfig,
    LinearDropoutConfig,
    NoDropoutScheduleConfig,
    TriangleDropoutConfig,
)


def dropout_rate(config: DropoutScheduleConfig, step: int, steps: int) -> float | None:
    """The rate at ``step``, counted from 1, of a run of ``steps``; None where the model's own rates hold."""
    match config:
        case NoDropoutScheduleConfig():
            return None
        case ConstantDropoutConfig():
            return config.rate
        case LinearDropoutConfig():
            last = config.last_step or steps
            done = (step - config.first_step) / max(last - config.first_step, 1)
            return config.start + (config.end - config.start) * min(max(done, 0.0), 1.0)
        case TriangleDropoutConfig():
            length = (config.steps or steps) // config.cycles
            if not length or step > length * config.cycles:
                return config.low
            place = (step % length) / length
            return config.low + (config.high - config.low) * (1 - abs(2 * place - 1))
