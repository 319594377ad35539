"""What runs forward, backward and step over the devices of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.model import Model
from quintet.processes import rank, world_size
from quintet.train.checkpoint import set_weights, trained_weights
from quintet.train.compute import Compute
from quintet.train.optimizer import set_learning_rate, step_if_finite
from quintet.train.parallel.shard import unsharded
from quintet.train.step import micro_batches, share_of_loss


class Engine(Protocol):
    """The steps of a run on its devices, and the state that a checkpoint holds."""

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """Add the gradients of ``batch``, this process's part of that of ``step``, and return the loss of the whole
        batch, a scalar on the device."""
        ...

    def update(self, rate: float) -> tuple[Tensor, Tensor]:
        """Clip and step; the gradient's norm before clipping and 1.0 if the step was left out, on the device."""
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Within, every process can use the model by itself, taking the same steps as the others."""
        ...

    def state(self) -> dict[str, Any]:
        """The weights that are trained, "model", and the optimizer's state, "optimizer", by the names of parameters."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        ...


class TorchEngine:
    """PyTorch alone: ``loss_module`` is a LossModule by itself, within DistributedDataParallel, or sharded.

    ``shape`` is this process's part of a batch.
    """

    def __init__(
        self,
        loss_module: nn.Module,
        model: Model,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        config: RunConfig,
        shape: BatchShape,
        compute: Compute,
    ) -> None:
        self.loss_module, self.model, self.optimizer, self.scaler = loss_module, model, optimizer, scaler
        self.config, self.shape, self.compute = config, shape, compute

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """See ``Engine``. The loss is the sum over the valid targets of the whole batch divided by their number, in
        whatever parts; dropout is keyed by the step and the number of the sample in the whole batch."""
        loss = torch.zeros((), device=self.compute.device)
        first, last = rank() * self.shape.accumulation, self.shape.accumulation - 1
        for number, part in enumerate(
            micro_batches(batch, step, self.shape.micro_batch_size, self.compute.device, first)
        ):
            with self._passes(last=number == last):
                share = share_of_loss(self.loss_module, part, self.config, self.compute)
                # The wrappers take the mean of the processes' gradients, and the loss is their sum.
                self.scaler.scale(share * world_size()).backward()
            loss += share.detach()
        if world_size() > 1:
            dist.all_reduce(loss)
        return loss

    def update(self, rate: float) -> tuple[Tensor, Tensor]:
        """See ``Engine``."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.config.train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.train.clip_norm, norm)
        set_learning_rate(self.optimizer, rate)
        if self.scaler.is_enabled():
            skipped = (~torch.isfinite(norm)).float()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            skipped = step_if_finite(self.optimizer, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm.to(self.compute.device), skipped.to(self.compute.device)

    def unsharded(self) -> AbstractContextManager[None]:
        """See ``Engine``."""
        return unsharded(self.loss_module)

    def state(self) -> dict[str, Any]:
        """See ``Engine``."""
        return {
            "model": trained_weights(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``Engine``."""
        set_weights(self.model, state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, optim_state_dict=state["optimizer"])

    @contextmanager
    def _passes(self, *, last: bool) -> Iterator[None]:
        """Gradients are sent to the other processes with the last pass of a batch alone."""
        if isinstance(self.loss_module, FSDPModule):
            self.loss_module.set_requires_gradient_sync(last)
        if isinstance(self.loss_module, DistributedDataParallel) and not last:
            with self.loss_module.no_sync():
                yield
            return
        yield
