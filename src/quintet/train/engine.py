"""One optimizer step: the protocol of an engine, micro-batches, forward and backward, clip, step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.model import Model
from quintet.model.dropout import set_dropout_keys
from quintet.processes import all_reduce, rank, world_size
from quintet.randomness import key
from quintet.train.checkpoint import set_weights, trained_weights
from quintet.train.compute import Compute, to_device
from quintet.train.optimizer import set_learning_rate, set_rounding
from quintet.train.parallel.shard import unsharded


class Engine(Protocol):
    """The steps of a run on its devices, and the state that a checkpoint holds."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that takes the steps."""
        ...

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """The scale of the loss with fp16, 1 otherwise."""
        ...

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """Run forward and backward over ``batch``, this process's part of the batch of ``step``, and add its gradients;
        returns the loss of the whole batch, an fp32 scalar on the device."""
        ...

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
        """Clip the gradients and take the optimizer's ``step`` with the learning rate ``rate``; returns the gradient's
        norm before clipping, and 1.0 if the step was left out because it is not finite, fp32 scalars on the device."""
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Let every process use the whole model within the context, all of them in the same order."""
        ...

    def state(self) -> dict[str, Any]:
        """The weights that are trained, "model", and the optimizer's state, "optimizer", by the names of parameters."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what `state` returned."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Part ``index`` of the batch of ``step`` on one device.

    ``inputs``, ``targets`` and, where a mask reads them, ``documents`` are int64 [samples, length], ``prompts`` bool of
    that shape. ``valid`` counts the targets with a loss in the whole batch, over all processes, and ``sample`` is the
    number of the part's first sample in the batch.
    """

    step: int
    index: int
    sample: int
    inputs: Tensor
    targets: Tensor
    documents: Tensor | None
    prompts: Tensor | None
    valid: int


def micro_batches(batch: Batch, step: int, size: int, device: torch.device, first: int = 0) -> Iterator[MicroBatch]:
    """Yield the consecutive parts of ``batch``, ``size`` samples each, on ``device``, numbered from ``first``."""
    arrays = (batch.inputs, batch.targets, batch.documents, batch.prompts)
    inputs, targets, *more = (None if one is None else to_device(torch.as_tensor(one), device) for one in arrays)
    assert inputs is not None
    assert targets is not None
    for index, start in enumerate(range(0, len(inputs), size), first):
        rows = slice(start, start + size)
        documents, prompts = (None if one is None else one[rows] for one in more)
        sample = first * size + start
        yield MicroBatch(step, index, sample, inputs[rows], targets[rows], documents, prompts, batch.valid)


def share_of_loss(loss_module: nn.Module, part: MicroBatch, config: RunConfig, compute: Compute) -> Tensor:
    """Run the forward pass of ``part``; returns its share of the loss of the whole batch, an fp32 scalar.

    Dropout is keyed by the step and the sample's number in the batch; that from PyTorch's generator, as for attention
    weights, by the step and the part.
    """
    # torch.manual_seed writes down a call stack for each kind of device that is not in use: an eighth of a tiny step.
    seeded = torch.default_generator if part.inputs.device.type == "cpu" else torch
    seeded.manual_seed(key(config.seed, "dropout", part.step, part.index))  # pyright: ignore[reportUnknownMemberType]
    base = key(config.seed, "dropout", part.step)
    set_dropout_keys(loss_module, base, part.sample, len(part.inputs), part.inputs.device)
    with compute.autocast():
        return loss_module(part.inputs, part.targets, part.documents, part.prompts) / max(part.valid, 1)


class TorchEngine:
    """PyTorch alone: ``loss_module`` is a LossModule by itself, within DistributedDataParallel, or sharded.

    ``shape`` is this process's part of a batch. ``take_step`` gets the gradient's norm, an fp32 scalar, takes the
    optimizer's step and returns 1.0 if it left it out; `step_if_finite` when not given.
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
        take_step: Callable[[torch.optim.Optimizer, Tensor], Tensor] | None = None,
    ) -> None:
        self.loss_module, self.model, self.optimizer, self.scaler = loss_module, model, optimizer, scaler
        self._take_step = take_step or step_if_finite
        self.config, self.shape, self.compute = config, shape, compute

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
    def _passes(self, *, last: bool) -> Generator[None]:
        """Send gradients to the other processes with the last pass of a batch; within a group of processes that share
        a gradient with each pass, lest every one of them keep the whole of it, unless the run file says otherwise."""
        if isinstance(self.loss_module, FSDPModule):
            each = getattr(self.config.parallel, "reduce_passes", "each") == "each"
            self.loss_module.set_requires_gradient_sync(last or each)
            self.loss_module.set_requires_all_reduce(last)
        if isinstance(self.loss_module, DistributedDataParallel) and not last:
            with self.loss_module.no_sync():
                yield
            return
        yield

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """Run forward and backward (see ``Engine``); returns an fp32 scalar. The loss is the sum over the valid targets
        of the whole batch divided by their number; dropout is keyed by the step and the sample's number in the batch,
        so that neither depends on how the batch is divided."""
        loss = torch.zeros((), device=self.compute.device)
        first, last = rank() * self.shape.accumulation, self.shape.accumulation - 1
        for number, part in enumerate(
            micro_batches(batch, step, self.shape.micro_batch_size, self.compute.device, first)
        ):
            with self._passes(last=number == last):
                share = share_of_loss(self.loss_module, part, self.config, self.compute)
                # The wrappers take the mean of the processes' gradients, and the loss is their sum.
                self.scaler.scale(share * world_size()).backward()  # pyright: ignore[reportUnknownMemberType]
            loss += share.detach()
        if world_size() > 1:
            all_reduce(loss)
        return loss

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
        """Clip, step and zero the gradients; returns two fp32 scalars (see ``Engine``)."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.config.train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.train.clip_norm, norm)
        set_learning_rate(self.optimizer, rate)
        set_rounding(self.optimizer, self.config.seed, step)
        if self.scaler.is_enabled():
            skipped = (~torch.isfinite(norm)).float()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            skipped = self._take_step(self.optimizer, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm.to(self.compute.device), skipped.to(self.compute.device)


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Take one optimizer step, unless the gradient's ``norm`` is not finite; returns 1.0 if it was left out.

    Both are fp32 scalars on the device.

    A fused kernel decides by itself from ``found_inf``, so that the host never waits for the norm. For any other
    optimizer the host looks at the norm.
    """
    found_inf = (~torch.isfinite(norm)).float()
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    elif not found_inf.item():
        optimizer.step()
    return found_inf
