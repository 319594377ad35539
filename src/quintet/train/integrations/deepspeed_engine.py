"""The steps of a run on DeepSpeed's engine (Rajbhandari et al. 2020), with ZeRO's stages 0 to 3."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.model import Model
from quintet.processes import all_reduce, broadcast_from_rank0, is_rank_zero, rank, world_size
from quintet.train.compute import Compute
from quintet.train.engine import micro_batches, share_of_loss
from quintet.train.integrations.deepspeed_values import Values, materialise, relink, values_of
from quintet.train.optimizer import set_learning_rate, set_rounding


class InPrecision(nn.Module):
    """``loss_module`` within autocast, which DeepSpeed's engine switches off around the module that it is given."""

    def __init__(self, loss_module: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.loss_module, self.compute = loss_module, compute

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """See ``LossModule``: int64 and bool [samples, length] to an fp32 scalar.

        Narrow copies of weights are not cached, since under ZeRO 3 weights do not stay.
        """
        with self.compute.autocast(keep_casts=False):
            return self.loss_module(*inputs)


class DeepSpeedEngine:
    """DeepSpeed's ``engine`` with the protocol of ``quintet.train.engine.Engine``.

    ``groups`` are the optimizer's groups before DeepSpeed cut their parameters into parts; ``shape`` is this process's
    part of a batch.
    """

    def __init__(
        self,
        engine: Any,
        model: Model,
        groups: list[dict[str, Any]],
        config: RunConfig,
        shape: BatchShape,
        compute: Compute,
    ) -> None:
        self.engine, self.model, self.config, self.shape, self.compute = engine, model, config, shape, compute
        self._plain = replace(compute, precision="fp32")
        self.optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self.scaler = LossScale(compute.device, scaler_of(engine))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]
        self._values: Values = values_of(engine)

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """See ``Engine``; returns an fp32 scalar. The loss is the sum over the valid targets of the whole batch divided
        by their number; DeepSpeed takes the mean of the processes' gradients, and must not divide by the passes."""
        loss = torch.zeros((), device=self.compute.device)
        first, last = rank() * self.shape.accumulation, self.shape.accumulation - 1
        parts = micro_batches(batch, step, self.shape.micro_batch_size, self.compute.device, first)
        for number, part in enumerate(parts):
            self.engine.set_gradient_accumulation_boundary(number == last)
            share = share_of_loss(self.engine, part, self.config, self._plain)
            self.engine.backward(share * world_size(), scale_wrt_gas=False)
            loss += share.detach()
        if world_size() > 1:
            all_reduce(loss)
        return loss

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
        """See ``Engine``; returns two fp32 scalars. DeepSpeed clips, and leaves out a step whose norm is not finite."""
        set_learning_rate(self.engine.optimizer, rate)
        set_rounding(self.optimizer, self.config.seed, step)
        norm: Any = self._norm_of_whole()
        if norm is not None and not math.isfinite(norm):
            self.engine.zero_grad()
            return self._scalar(norm), self._scalar(1.0)
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return self._scalar(norm), self._scalar(float(not self.engine.was_step_applied()))

    def unsharded(self) -> AbstractContextManager[None]:
        """See ``Engine``."""
        return self._whole() if self.engine.zero_optimization_stage() == 3 else nullcontext()

    def state(self) -> dict[str, Any]:
        """See ``Engine``. The first process has all of it, on the host, and the others have nothing."""
        materialise(self.engine, self._values)
        relink(self.engine)
        weights: dict[str, Tensor] = {}
        averages: dict[str, dict[str, Tensor]] = {}
        held = {id(parameter): holder for parameter, holder in self._values.holders()}
        for name, parameter in self._trained():
            weights[name] = _kept(self._values.weight(parameter))
            averages[name] = self._state_of(parameter, held[id(parameter)])
        for name, buffer in self._buffers():
            weights[name] = _kept(buffer)
        if not is_rank_zero():
            return {}
        return {"model": weights, "optimizer": {"state": averages, "param_groups": self._current_groups()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``Engine``. What the first process has is taken."""
        materialise(self.engine, self._values)
        relink(self.engine)
        weights, optimizer = state.get("model", {}), state.get("optimizer", {})
        averages = optimizer.get("state", {})
        held = {id(parameter): holder for parameter, holder in self._values.holders()}
        for name, parameter in self._trained():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            self._values.set_weight(parameter, self._sent(weights.get(name), shape))
            self._set_state_of(parameter, held[id(parameter)], averages.get(name, {}), shape)
        for name, buffer in self._buffers():
            buffer.copy_(self._sent(weights.get(name), buffer.shape, buffer.dtype))
        self._set_groups(broadcast_from_rank0(lambda: optimizer.get("param_groups", [])))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Names and buffers that a checkpoint holds, in their shapes and dtypes."""
        kept = self.model.state_dict().keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in kept]

    def _norm_of_whole(self) -> float | None:
        """The gradient's norm where DeepSpeed has no optimizer of its own, and so neither measures it nor looks
        whether it is finite."""
        if self.engine.optimizer is not self.engine.basic_optimizer:
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def _scalar(self, value: Any) -> Tensor:
        """``value`` as an fp32 scalar on the device."""
        return torch.as_tensor(value, dtype=torch.float32, device=self.compute.device)

    def _state_of(self, parameter: nn.Parameter, holder: Tensor) -> dict[str, Tensor]:
        """The optimizer's state for ``parameter`` by name: averages of its shape in their dtype, fp32 scalars."""
        found: dict[str, Tensor] = {}
        for name, value in self.optimizer.state[holder].items():
            if _is_average(value, holder):
                found[name] = _kept(self._values.average(parameter, name), value.dtype)
            else:
                found[name] = _kept(torch.as_tensor(value, dtype=torch.float32))
        return found

    def _set_state_of(self, parameter: nn.Parameter, holder: Tensor, given: dict[str, Any], shape: torch.Size) -> None:
        """Take what ``_state_of`` returned; ``shape`` is that of the whole parameter."""
        own = self.optimizer.state[holder]
        for name, value in list(own.items()):
            if _is_average(value, holder):
                self._values.set_average(parameter, name, self._sent(given.get(name), shape))
                continue
            number = self._sent(given.get(name), torch.Size(())).item()
            own[name] = torch.full_like(value, number) if isinstance(value, Tensor) else type(value)(number)

    def _sent(self, value: Tensor | None, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
        """The first process's ``value`` in every process, on the device, of that ``shape`` and ``dtype``."""
        device = self.compute.device
        if value is None:
            assert not is_rank_zero(), "the checkpoint lacks a value that the run has"
            whole = torch.empty(shape, dtype=dtype, device=device)
        else:
            whole = value.to(device, dtype, copy=True).contiguous()
        if world_size() > 1:
            dist.broadcast(whole, 0)
        return whole

    def _current_groups(self) -> list[dict[str, Any]]:
        now = self.optimizer.param_groups
        return [
            {name: (other[name] if name in other and name != "params" else value) for name, value in group.items()}
            for group, other in zip(self._groups, now, strict=True)
        ]

    def _set_groups(self, given: list[dict[str, Any]]) -> None:
        for group, other in zip(self.optimizer.param_groups, given, strict=True):
            group.update({name: value for name, value in other.items() if name in group and name != "params"})

    @contextmanager
    def _whole(self) -> Generator[None]:
        """Make the weights whole within the context, and keep DeepSpeed's hooks from sharding them again."""
        import deepspeed

        offload = self.engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.model.parameters())):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)


def _is_average(value: Any, holder: Tensor) -> bool:
    """True if ``value`` has a number for each element of ``holder``: the same shape, any dtype."""
    return isinstance(value, Tensor) and value.shape == holder.shape


def _kept(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of ``value`` on the host, in its shape and ``dtype`` or its own; an empty tensor [0] except on rank 0."""
    return value.detach().to("cpu", dtype or value.dtype, copy=True) if is_rank_zero() else torch.empty(0)


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
        """True if the loss is scaled."""
        return self._theirs is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's GradScaler, and in "deepspeed" the counts of DeepSpeed."""
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
        """Load what `state_dict` returned, or the scale alone from a state of torch's GradScaler."""
        if self._theirs is None or not state_dict:
            return
        for name, value in state_dict.get("deepspeed", {"cur_scale": state_dict["scale"]}).items():
            if hasattr(self._theirs, name):
                setattr(self._theirs, name, value)


def scaler_of(engine: Any) -> Any:
    """Return the scaler of the loss in DeepSpeed's ``engine``, None where the loss is not scaled."""
    if not engine.fp16_enabled():
        return None
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
