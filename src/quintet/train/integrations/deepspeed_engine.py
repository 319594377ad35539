"""The steps of a run on DeepSpeed's engine, with ZeRO stages 0 to 3 (Rajbhandari et al. 2020)."""

import math
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
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
    """``loss_module`` within autocast. DeepSpeed's engine disables autocast outside of its module."""

    def __init__(self, loss_module: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.loss_module, self.compute = loss_module, compute

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Return the loss of ``LossModule``, an fp32 scalar, from int64 and bool [samples, length]."""
        # Under ZeRO 3 weights are dropped after use, so their narrow copies must not be cached.
        with self.compute.autocast(keep_casts=False):
            return self.loss_module(*inputs)


class DeepSpeedEngine:
    """DeepSpeed's ``engine`` as an ``Engine`` (see ``quintet.train.engine``).

    ``groups`` are the optimizer's groups before DeepSpeed cut their parameters into parts, and ``shape`` is this
    process's part of a batch.
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
        loss = torch.zeros((), device=self.compute.device)
        first, last = rank() * self.shape.accumulation, self.shape.accumulation - 1
        parts = micro_batches(batch, step, self.shape.micro_batch_size, self.compute.device, first)
        for number, part in enumerate(parts):
            self.engine.set_gradient_accumulation_boundary(number == last)
            share = share_of_loss(self.engine, part, self.config, self._plain)
            # The loss is a sum over processes and passes. DeepSpeed averages over processes, and without
            # scale_wrt_gas over passes too.
            self.engine.backward(share * world_size(), scale_wrt_gas=False)
            loss += share.detach()
        if world_size() > 1:
            all_reduce(loss)
        return loss

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
        # DeepSpeed clips, and skips a step whose norm is not finite.
        set_learning_rate(self.engine.optimizer, rate)
        set_rounding(self.optimizer, self.config.seed, step)
        norm: Any = self._unmeasured_norm()
        if norm is not None and not math.isfinite(norm):
            self.engine.zero_grad()
            return self._scalar(norm), self._scalar(1.0)
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return self._scalar(norm), self._scalar(float(not self.engine.was_step_applied()))

    def unsharded(self) -> AbstractContextManager[None]:
        return self._gathered() if self.engine.zero_optimization_stage() == 3 else nullcontext()

    def state(self) -> dict[str, Any]:
        """Return the state in the host's memory of rank 0, and {} in the other processes."""
        materialise(self.engine, self._values)
        relink(self.engine)
        weights: dict[str, Tensor] = {}
        averages: dict[str, dict[str, Tensor]] = {}
        held = {id(parameter): holder for parameter, holder in self._values.holders()}
        for name, parameter in self._trained():
            weights[name] = _on_rank0(self._values.weight(parameter))
            averages[name] = self._state_of(parameter, held[id(parameter)])
        for name, buffer in self._buffers():
            weights[name] = _on_rank0(buffer)
        if not is_rank_zero():
            return {}
        return {"model": weights, "optimizer": {"state": averages, "param_groups": self._current_groups()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Load the state that rank 0 has, in every process."""
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
        """Return names and buffers that a checkpoint holds, in their shapes and dtypes."""
        persistent = self.model.state_dict().keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in persistent]

    def _unmeasured_norm(self) -> float | None:
        """Return the gradient's norm if DeepSpeed does not measure it, because it does not wrap the optimizer."""
        if self.engine.optimizer is not self.engine.basic_optimizer:
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def _scalar(self, value: Any) -> Tensor:
        """``value`` as an fp32 scalar on the device."""
        return torch.as_tensor(value, dtype=torch.float32, device=self.compute.device)

    def _state_of(self, parameter: nn.Parameter, holder: Tensor) -> dict[str, Tensor]:
        """Return the optimizer's state of ``parameter`` by name: averages in its shape and fp32 scalars."""
        state: dict[str, Tensor] = {}
        for name, value in self.optimizer.state[holder].items():
            if _is_average(value, holder):
                state[name] = _on_rank0(self._values.average(parameter, name), value.dtype)
            else:
                state[name] = _on_rank0(torch.as_tensor(value, dtype=torch.float32))
        return state

    def _set_state_of(self, parameter: nn.Parameter, holder: Tensor, saved: dict[str, Any], shape: torch.Size) -> None:
        """Load what ``_state_of`` returned; ``shape`` is that of the whole parameter."""
        own = self.optimizer.state[holder]
        for name, value in list(own.items()):
            if _is_average(value, holder):
                self._values.set_average(parameter, name, self._sent(saved.get(name), shape))
                continue
            number = self._sent(saved.get(name), torch.Size(())).item()
            own[name] = torch.full_like(value, number) if isinstance(value, Tensor) else type(value)(number)

    def _sent(self, value: Tensor | None, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return rank 0's ``value`` in every process, on the device, in ``shape`` and ``dtype``."""
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
        return [
            {name: (now[name] if name in now and name != "params" else value) for name, value in group.items()}
            for group, now in zip(self._groups, self.optimizer.param_groups, strict=True)
        ]

    def _set_groups(self, saved: list[dict[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, saved, strict=True):
            group.update({name: value for name, value in values.items() if name in group and name != "params"})

    @contextmanager
    def _gathered(self) -> Generator[None]:
        """Gather the weights within the context, without DeepSpeed's hooks, which would shard them again."""
        offload = self.engine.optimizer.parameter_offload
        with import_module("deepspeed").zero.GatheredParameters(list(self.model.parameters())):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)


def _is_average(value: Any, holder: Tensor) -> bool:
    """True if ``value`` has the shape of ``holder``, in any dtype."""
    return isinstance(value, Tensor) and value.shape == holder.shape


def _on_rank0(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy of ``value`` in the host's memory, in ``dtype`` or its own; an empty tensor [0] in other ranks."""
    return value.detach().to("cpu", dtype or value.dtype, copy=True) if is_rank_zero() else torch.empty(0)


# The counts of DeepSpeed's scalers; a scaler with a fixed scale has only the first.
_COUNTS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale(torch.amp.GradScaler):
    """The state of DeepSpeed's ``scaler`` in the form of torch's GradScaler, so that either continues the other's run.

    DeepSpeed itself scales and steps. ``scaler`` is None if the loss is not scaled.
    """

    def __init__(self, device: torch.device, scaler: Any) -> None:
        super().__init__(device.type, enabled=False)
        self._theirs = scaler

    def is_enabled(self) -> bool:
        return self._theirs is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the keys of torch's GradScaler, and DeepSpeed's counts under "deepspeed"."""
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
        """Load what `state_dict` returned, or only the scale from a state of torch's GradScaler."""
        if self._theirs is None or not state_dict:
            return
        for name, value in state_dict.get("deepspeed", {"cur_scale": state_dict["scale"]}).items():
            if hasattr(self._theirs, name):
                setattr(self._theirs, name, value)


def scaler_of(engine: Any) -> Any:
    """Return the loss scaler of DeepSpeed's ``engine``, None if the loss is not scaled."""
    if not engine.fp16_enabled():
        return None
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
