"""DeepSpeed's scale of an fp16 loss as what a checkpoint keeps of it."""

from __future__ import annotations

from typing import Any

import torch

# What DeepSpeed's scalers count; one that keeps a fixed scale has the first alone.
_COUNTS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale(torch.amp.GradScaler):
    """The state of ``scaler``, DeepSpeed's, as torch's GradScaler has it, so that either continues the other's run.

    DeepSpeed scales and steps by itself; None stands for a loss that is not scaled.
    """

    def __init__(self, device: torch.device, scaler: Any) -> None:
        super().__init__(device.type, enabled=False)
        self._theirs = scaler

    def is_enabled(self) -> bool:
        """Whether the loss is scaled."""
        return self._theirs is not None

    def state_dict(self) -> dict[str, Any]:
        """What torch's GradScaler keeps, and in "deepspeed" what DeepSpeed counts."""
        if self._theirs is None:
            return {}
        counts = {name: getattr(self._theirs, name) for name in _COUNTS if hasattr(self._theirs, name)}
        factor = float(getattr(self._theirs, "scale_factor", None) or 2.0)
        since = counts.get("cur_iter", 0) - (counts.get("last_overflow_iter") or 0)
        return {
            "scale": float(self._theirs.cur_scale),
            "growth_factor": factor,
            "backoff_factor": 1 / factor,
            "growth_interval": int(getattr(self._theirs, "scale_window", None) or 2000),
            "_growth_tracker": max(0, since),
            "deepspeed": counts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, or torch's GradScaler: that one's scale alone."""
        if self._theirs is None or not state_dict:
            return
        for name, value in state_dict.get("deepspeed", {"cur_scale": state_dict["scale"]}).items():
            if hasattr(self._theirs, name):
                setattr(self._theirs, name, value)


def scaler_of(engine: Any) -> Any:
    """What scales the loss in DeepSpeed's ``engine``; None where nothing does."""
    if not engine.fp16_enabled():
        return None
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
