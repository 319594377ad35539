"""A rate that is lowered when the validation loss has stopped to fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quintet.config.duration import steps_of
from quintet.config.schedule import PlateauConfig

# PyTorch leaves out a change that is smaller than this.
_SMALLEST_CHANGE = 1e-8


def plateau_rate(config: PlateauConfig, highest: float, step: int, steps: int, state: Mapping[str, Any]) -> float:
    """Rate of ``step``: ``highest · step / warmup_steps`` in the warm-up, then what ``state`` says."""
    warmup = steps_of(config.warmup_steps, steps)
    return highest * step / warmup if step < warmup else state.get("rate", highest)


def after_validation(
    config: PlateauConfig, highest: float, step: int, steps: int, state: Mapping[str, Any], loss: float
) -> dict[str, Any]:
    """The state after the validation ``loss`` behind ``step``; {} before the first one.

    Its facts are ``rate``, the ``best`` loss, and the validations that were ``bad`` in a row and that the ``cooldown``
    still lasts. Counted as in torch.optim.lr_scheduler.ReduceLROnPlateau; what is measured in the warm-up is not.
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
