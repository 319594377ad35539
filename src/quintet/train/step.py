"""The parts of a batch and the loss of each, and the rehearsal that finds out whether they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.model.dropout import set_dropout_keys
from quintet.randomness import key
from quintet.train.compute import Compute, to_device


@dataclass(frozen=True)
class MicroBatch:
    """Part ``index`` of the batch of ``step``, as tensors of one device; ``valid`` counts the targets of the whole
    batch that have a loss, in whatever process they are, and ``sample`` is the number of the first sample in it."""

    step: int
    index: int
    sample: int
    inputs: Tensor
    targets: Tensor
    documents: Tensor | None
    prompts: Tensor | None
    valid: int


def micro_batches(batch: Batch, step: int, size: int, device: torch.device, first: int = 0) -> Iterator[MicroBatch]:
    """The consecutive parts of ``batch``, ``size`` samples each, on ``device``, numbered from ``first``."""
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
    """The loss that ``part`` has in that of its batch, a scalar.

    Dropout is keyed by the step and the sample's number in the batch; where it comes from PyTorch's generator, as that
    of attention weights, by the step and the part.
    """
    torch.manual_seed(key(config.seed, "dropout", part.step, part.index))
    base = key(config.seed, "dropout", part.step)
    set_dropout_keys(loss_module, base, part.sample, len(part.inputs), part.inputs.device)
    with compute.autocast():
        return loss_module(part.inputs, part.targets, part.documents, part.prompts) / max(part.valid, 1)


def dry_step(
    loss_module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    shape: BatchShape,
    vocab_size: int,
    compute: Compute,
) -> None:
    """Run one micro-batch of ``shape`` and one optimizer step of rate 0, and leave no trace.

    So memory runs out now or never.
    Raises UserError that names the setting to change.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    ids = torch.arange(shape.micro_batch_size * shape.sequence_length, device=compute.device) % vocab_size
    ids = ids.view(shape.micro_batch_size, shape.sequence_length)
    set_dropout_keys(loss_module, 0, 0, len(ids), ids.device)
    try:
        with compute.autocast():
            documents = torch.zeros_like(ids) if config.model.tells_documents else None
            prompts = torch.ones_like(ids, dtype=torch.bool) if config.model.tells_prompts else None
            loss = loss_module(ids, ids, documents, prompts)
        loss.backward()
        # Rprop moves a weight by the gradient's sign whatever the rate.
        for parameter in loss_module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
        raise UserError(_memory_advice(config, shape)) from error
    finally:
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _memory_advice(config: RunConfig, shape: BatchShape) -> str:
    tokens = f"{shape.micro_batch_size} samples of {shape.sequence_length} tokens"
    if shape.micro_batch_size > 1:
        smaller = max(size for size in range(1, shape.micro_batch_size) if shape.samples % size == 0)
        return (
            f"train.micro_batch_size: a forward and backward pass over {tokens} does not fit the memory of the device; "
            f"set train.micro_batch_size={smaller} (the batch stays {config.batch.samples}, the result the same to "
            "rounding)"
        )
    return (
        f"data.sequence_length: even one sample of {shape.sequence_length} tokens does not fit the memory of the "
        "device; shorten it, or make the model smaller"
    )
