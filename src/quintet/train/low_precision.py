"""AdamW whose averages are kept in 16 bits between the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class LowPrecisionAdamW(torch.optim.AdamW):
    """AdamW computed in fp32, with both averages kept in ``state_type``: 4 bytes a weight instead of 8.

    The second average is kept as its root ``exp_avg_rms``, for squares of small gradients are below what fp16 holds.
    Both are rounded at random, up or down with the probability that makes the mean right: an average that changes by
    less than half the distance of two numbers would otherwise never change. The loop seeds the generator before each
    micro-batch with the number of the step, so that a continued run rounds as one that was never stopped.
    """

    def __init__(self, groups: Any, state_type: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.state_type = state_type

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, one parameter after the other, so that only one has its averages in fp32 at a time."""
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._advance(parameter, group, found_inf, getattr(self, "grad_scale", None))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``; torch takes the averages to the type of the weights, here they get theirs again."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_rms"):
                state[name] = state[name].to(self.state_type)

    def _advance(
        self, parameter: Tensor, group: dict[str, Any], found_inf: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in ("exp_avg", "exp_avg_rms"):
                state[name] = torch.zeros_like(parameter, dtype=self.state_type)
        assert parameter.grad is not None
        average, square = state["exp_avg"].float(), state["exp_avg_rms"].float().square_()
        adamw(
            [parameter],
            [parameter.grad],
            [average],
            [square],
            [],
            [state["step"]],
            fused=True,
            grad_scale=grad_scale,
            found_inf=found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, value in (("exp_avg", average), ("exp_avg_rms", square.sqrt_())):
            rounded = stochastically_rounded(value, self.state_type)
            # A step that was left out changes nothing, so its averages are not rounded anew either.
            state[name] = rounded if found_inf is None else torch.where(found_inf.bool(), state[name], rounded)


def stochastically_rounded(value: Tensor, to: torch.dtype) -> Tensor:
    """``value``, fp32, as one of the two numbers of type ``to`` around it, so that the mean is ``value``.

    What ``to`` holds exactly stays as it is, and what is beyond its range becomes its largest number. Below 1e-36 the
    numbers are 1.2e-38 apart.
    """
    kind = torch.finfo(to)
    value = value.clamp(kind.min, kind.max)
    # The bits of the exponent alone are the power of two below; MPS has no frexp.
    power = (value.view(torch.int32) & 0x7F800000).view(torch.float32)
    # Of two neighbours; all are powers of two, so that dividing and multiplying by it is exact.
    distance = power * kind.eps
    distance.clamp_(min=max(kind.smallest_normal * kind.eps, torch.finfo(torch.float32).tiny))
    below = torch.floor(value / distance)
    rounded = (below + (torch.rand_like(value) < value / distance - below)) * distance
    return rounded.clamp_(kind.min, kind.max).to(to)
