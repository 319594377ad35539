"""One optimizer step: the protocol of an engine, and its implementation with PyTorch."""

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
from quintet.train.parallel.parallelize import unsharded


class Engine(Protocol):
    """Takes the optimizer steps of a run, and has the state that a checkpoint stores."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that takes the steps."""
        ...

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """The scale of the loss with fp16, 1 otherwise."""
        ...

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """Run forward and backward passes over ``batch``, this process's part of the batch of ``step``.

        Returns the loss of the whole batch, an fp32 scalar on the device: the sum over its valid targets divided by
        their number, however the batch is divided into micro-batches and processes.
        """
        ...

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
        """Clip the gradients, take the optimizer's ``step`` with the learning rate ``rate``, and zero the gradients.

        Returns the gradient norm before clipping, and 1.0 if the step was skipped because that is not finite: fp32
        scalars on the device.
        """
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Gather the weights within the context, in which all processes must use the model in the same order."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the trainable weights under "model" and the optimizer's state under "optimizer", by parameter name."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Part ``index`` of the batch of ``step`` on one device.

    ``inputs``, ``targets`` and ``documents`` are int64 [samples, length], ``prompts`` bool of that shape; the last two
    are None if no attention mask reads them. ``valid`` is the number of targets in the whole batch, over all processes.
    ``sample`` is the number of the part's first sample in that batch.
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
    inputs, targets, *masks = (None if array is None else to_device(torch.as_tensor(array), device) for array in arrays)
    assert inputs is not None
    assert targets is not None
    for index, start in enumerate(range(0, len(inputs), size), first):
        rows = slice(start, start + size)
        documents, prompts = (None if mask is None else mask[rows] for mask in masks)
        sample = first * size + start
        yield MicroBatch(step, index, sample, inputs[rows], targets[rows], documents, prompts, batch.valid)


def share_of_loss(loss_module: nn.Module, part: MicroBatch, config: RunConfig, compute: Compute) -> Tensor:
    """Run the forward pass of ``part``; return its share of the loss of the whole batch, an fp32 scalar.

    Dropout is keyed by the step and the sample's number in the batch. Dropout from PyTorch's own generator, as of
    attention weights, is keyed by the step and the part.
    """
    # torch.manual_seed records a call stack for each unused kind of device, which takes an eighth of a tiny step.
    seeded = torch.default_generator if part.inputs.device.type == "cpu" else torch
    seeded.manual_seed(key(config.seed, "dropout", part.step, part.index))  # pyright: ignore[reportUnknownMemberType]
    base = key(config.seed, "dropout", part.step)
    set_dropout_keys(loss_module, base, part.sample, len(part.inputs), part.inputs.device)
    with compute.autocast():
        return loss_module(part.inputs, part.targets, part.documents, part.prompts) / max(part.valid, 1)


class TorchEngine:
    """The engine of PyTorch: ``loss_module`` is a LossModule, inside DistributedDataParallel or sharded if need be.

    ``shape`` is this process's part of a batch. ``take_step`` takes the optimizer's step, given the gradient's norm;
    None is `step_if_finite`.
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
        return unsharded(self.loss_module)

    def state(self) -> dict[str, Any]:
        return {
            "model": trained_weights(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        set_weights(self.model, state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, optim_state_dict=state["optimizer"])

    @contextmanager
    def _gradient_sync(self, *, last: bool) -> Generator[None]:
        """Send gradients to the other processes in the ``last`` pass of a batch.

        Processes that shard a gradient reduce it in each pass, so that none keeps all of it, unless `reduce_passes`
        says otherwise.
        """
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
        loss = torch.zeros((), device=self.compute.device)
        first, last = rank() * self.shape.accumulation, self.shape.accumulation - 1
        parts = micro_batches(batch, step, self.shape.micro_batch_size, self.compute.device, first)
        for number, part in enumerate(parts):
            with self._gradient_sync(last=number == last):
                share = share_of_loss(self.loss_module, part, self.config, self.compute)
                # DDP and FSDP average the gradients over the processes, and the loss is a sum over them.
                self.scaler.scale(share * world_size()).backward()  # pyright: ignore[reportUnknownMemberType]
            loss += share.detach()
        if world_size() > 1:
            all_reduce(loss)
        return loss

    def update(self, rate: float, step: int) -> tuple[Tensor, Tensor]:
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
    """Take one optimizer step if the gradient's ``norm`` is finite; return 1.0 if it was skipped.

    Both are fp32 scalars on the device. A fused kernel reads ``found_inf`` on the device, so the host does not wait for
    the norm. For any other optimizer it does.
    """
    found_inf = (~torch.isfinite(norm)).float()
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    elif not found_inf.item():
        optimizer.step()
    return found_inf
