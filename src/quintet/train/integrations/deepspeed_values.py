"""Whole fp32 weights and optimizer averages, read from and written to the parts that DeepSpeed keeps.

All processes call these functions together, in one order. ``Values`` states the shapes and dtypes for its classes.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Values(Protocol):
    """Access to the weight and the optimizer's state of each parameter under one stage of ZeRO."""

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each trained parameter with the tensor that has its optimizer state: the parameter, its fp32 copy of
        that shape, or a flat fp32 vector [numbers] with a part of it."""
        ...

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole fp32 value of ``parameter``, in its shape."""
        ...

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set ``parameter``, and its narrower copy, to the whole fp32 ``value`` of its shape."""
        ...

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Return the optimizer's average ``name``, of the parameter's shape and in the optimizer's dtype."""
        ...

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Set the optimizer's average ``name`` to ``value``, of the parameter's shape and in the optimizer's dtype."""
        ...


class WholeValues:
    """Values under stage 0, which keeps them whole: the parameter itself, or the fp32 copy of a narrower one."""

    def __init__(self, engine: Any) -> None:
        self._state = engine.basic_optimizer.state
        narrow, masters = (getattr(engine.optimizer, name, None) for name in ("fp16_groups", "fp32_groups"))
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        if narrow is None or masters is None:
            groups = engine.basic_optimizer.param_groups
            self._pairs = [(parameter, parameter) for group in groups for parameter in group["params"]]
        else:
            for parameters, copies in zip(narrow, masters, strict=True):
                self._pairs += zip(parameters, copies, strict=True)
        self._master = {id(parameter): master for parameter, master in self._pairs}

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        yield from self._pairs

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return self._master[id(parameter)].detach()

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._master[id(parameter)].data.copy_(value)
        parameter.data.copy_(value)

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        return self._state[self._master[id(parameter)]][name]

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        self._state[self._master[id(parameter)]][name].copy_(value)


class _Parts:
    """Values that DeepSpeed's own functions collect from the processes."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return _known(_utils().safe_get_full_fp32_param(parameter))

    def average(self, parameter: nn.Parameter, name: str) -> Tensor:
        return _known(_utils().safe_get_full_optimizer_state(parameter, name))

    def set_average(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        _utils().safe_set_full_optimizer_state(parameter, value, name)


class FlatValues(_Parts):
    """Values under stages 1 and 2, and of DeepSpeed's optimizer for bf16.

    The weights are whole. A process has a part of one flat fp32 vector for each group of the optimizer.
    """

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for parameters, part in flat_groups(self._zero):
            for parameter in parameters:
                yield parameter, part

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        _utils().safe_set_full_fp32_param(parameter, value)
        parameter.data.copy_(value)


class ShardedValues(_Parts):
    """Values under stage 3: a process has a part of each parameter, and of a flat fp32 vector for each group."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for parameters, part in zip(self._zero.fp16_groups, self._zero.fp32_partitioned_groups_flat, strict=True):
            for parameter in parameters:
                yield parameter, part

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        deepspeed = import_module("deepspeed")
        _utils().safe_set_full_fp32_param(parameter, value)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            parameter.data.copy_(value)


def values_of(engine: Any) -> Values:
    """Return the access to the values of DeepSpeed's ``engine``, by its stage."""
    if engine.zero_optimization_stage() == 3:
        return ShardedValues(engine)
    if engine.zero_optimization_stage() in (1, 2):
        return FlatValues(engine)
    return WholeValues(engine)


def materialise(engine: Any, values: Values) -> None:
    """Create the optimizer's state before its first step, because loading a state requires one; no weight changes."""
    optimizer = engine.basic_optimizer
    if optimizer.state:
        return
    before = [(group["params"], group["lr"]) for group in optimizer.param_groups]
    holders = list({id(holder): holder for _, holder in values.holders()}.values())
    if not any(group["params"] for group in optimizer.param_groups):
        # Stage 3 shows the optimizer one vector at a time. For a step at rate 0 any group will do.
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
    """Update DeepSpeed's references to the optimizer's state, which it sets once and an optimizer may replace."""
    if engine.zero_optimization_stage() not in (1, 2):
        return
    linkage = import_module("deepspeed.utils.mixed_precision_linkage")
    for parameters, part in flat_groups(engine.optimizer):
        linkage.lazy_init_hp_params_optimizer_state(parameters, part, engine.basic_optimizer.state)


def flat_groups(zero: Any) -> Iterator[tuple[list[nn.Parameter], Tensor]]:
    """Yield the groups of an optimizer of stage 1 or 2, or of DeepSpeed's for bf16, each with this process's part of
    it, fp32 [numbers]."""
    if hasattr(zero, "fp32_groups_flat_partition"):
        yield from zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True)
    else:
        yield from zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)


def _utils() -> Any:
    return import_module("deepspeed.utils")


def _known(value: Tensor | None) -> Tensor:
    """Return ``value``, of any shape and dtype."""
    assert value is not None, "DeepSpeed does not know a trained parameter"
    return value
