"""The whole values that DeepSpeed keeps in parts: fp32 weights and the optimizer's averages of each.

All processes call these functions together, in one order. ``Values`` states shapes and dtypes for its classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Values(Protocol):
    """The way in which a stage of ZeRO keeps the weight and the optimizer's state of a parameter."""

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter with the tensor for which the optimizer keeps its state: the parameter, its fp32 copy
        of that shape, or a flat fp32 vector [numbers] with a part of it."""
        ...

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 value of ``parameter``, in its shape."""
        ...

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give ``parameter`` the whole fp32 ``value`` of its shape, and its narrower copy too."""
        ...

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        """The whole average that the optimizer keeps under ``name``, of the parameter's shape and as a rule fp32."""
        ...

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Give the optimizer the whole ``value`` for ``name``, of the parameter's shape and as a rule fp32."""
        ...


class WholeValues:
    """Stage 0 keeps everything whole: the parameter itself, or the fp32 master copy of a narrow one."""

    def __init__(self, engine: Any) -> None:
        self._state = engine.basic_optimizer.state
        narrow, masters = (getattr(engine.optimizer, name, None) for name in ("fp16_groups", "fp32_groups"))
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        if narrow is None or masters is None:
            groups = engine.basic_optimizer.param_groups
            self._pairs = [(parameter, parameter) for group in groups for parameter in group["params"]]
        else:
            for some, theirs in zip(narrow, masters, strict=True):
                self._pairs += zip(some, theirs, strict=True)
        self._master = {id(parameter): master for parameter, master in self._pairs}

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """See ``Values``; each tensor is fp32 in the parameter's shape: its copy, or the parameter itself."""
        yield from self._pairs

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """See ``Values``; fp32, in the parameter's shape."""
        return self._master[id(parameter)].detach()

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See ``Values``; fp32, in the parameter's shape."""
        self._master[id(parameter)].data.copy_(value)
        parameter.data.copy_(value)

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        """See ``Values``; in the parameter's shape and the optimizer's dtype."""
        return self._state[self._master[id(parameter)]][name]

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """See ``Values``; in the parameter's shape and the optimizer's dtype."""
        self._state[self._master[id(parameter)]][name].copy_(value)


class _Parts:
    def weight(self, parameter: nn.Parameter) -> Tensor:
        """See ``Values``; fp32, in the parameter's shape."""
        from deepspeed.utils import safe_get_full_fp32_param

        return _there(safe_get_full_fp32_param(parameter))

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        """See ``Values``; in the parameter's shape and the optimizer's dtype."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return _there(safe_get_full_optimizer_state(parameter, name))

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """See ``Values``; in the parameter's shape and the optimizer's dtype."""
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, name)


class FlatValues(_Parts):
    """Stages 1 and 2, and DeepSpeed's optimizer for bf16: the weights are whole, a process has a part of one long fp32
    vector for each group of the optimizer."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """See ``Values``; the tensor is a flat fp32 part [numbers] of several parameters."""
        for parameters, part in flat_groups(self._zero):
            for parameter in parameters:
                yield parameter, part

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See ``Values``; fp32, in the parameter's shape."""
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value)
        parameter.data.copy_(value)


class ShardedValues(_Parts):
    """Stage 3: a process has a part of each parameter, and a part of a long fp32 vector for each group of them."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """See ``Values``; the tensor is a flat fp32 part [numbers] of several parameters."""
        for parameters, part in zip(self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat, strict=True):
            for parameter in parameters:
                yield parameter, part

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See ``Values``; fp32, in the parameter's shape."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            parameter.data.copy_(value)


def values_of(engine: Any) -> Values:
    """Return the values of DeepSpeed's ``engine``, by its stage."""
    if engine.zero_optimization_stage() == 3:
        return ShardedValues(engine)
    if engine.zero_optimization_stage() in (1, 2):
        return FlatValues(engine)
    return WholeValues(engine)


def materialise(engine: Any, values: Values) -> None:
    """Let the optimizer have a state before its first step, as loading one asks for; no weight moves."""
    optimizer = engine.basic_optimizer
    if optimizer.state:
        return
    before = [(group["params"], group["lr"]) for group in optimizer.param_groups]
    holders = list({id(holder): holder for _, holder in values.holders()}.values())
    if not any(group["params"] for group in optimizer.param_groups):
        # Stage 3 shows the optimizer one vector at a time; whose group it is in is of no importance here.
        optimizer.param_groups[0]["params"] = holders
    gradients = [holder.grad for holder in holders]
    try:
        for holder in holders:
            holder.grad = torch.zeros_like(holder)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    finally:
        for holder, gradient in zip(holders, gradients, strict=True):
            holder.grad = gradient
        for group, (parameters, rate) in zip(optimizer.param_groups, before, strict=True):
            group["params"], group["lr"] = parameters, rate


def relink(engine: Any) -> None:
    """Let DeepSpeed find what the optimizer keeps now: it notes that once, and an optimizer may replace it."""
    from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

    if engine.zero_optimization_stage() not in (1, 2):
        return
    for parameters, part in flat_groups(engine.optimizer):
        lazy_init_hp_params_optimizer_state(parameters, part, engine.basic_optimizer.state)


def flat_groups(zero: Any) -> Iterator[tuple[list[nn.Parameter], Tensor]]:
    """The groups of an optimizer of stage 1 or 2, or of DeepSpeed's for bf16, each with this process's part of it, fp32
    [numbers]."""
    if hasattr(zero, "fp32_groups_flat_partition"):
        yield from zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True)
    else:
        yield from zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)


def _there(value: Tensor | None) -> Tensor:
    """``value``, of any shape and dtype, which is there."""
    assert value is not None, "DeepSpeed knows nothing of a trained parameter"
    return value
