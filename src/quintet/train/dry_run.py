"""A dry run of two steps and a validation before training, so that an out-of-memory error comes at once."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from quintet.config.schema import BatchShape, RunConfig
from quintet.data.batch import Batch
from quintet.errors import UserError, one_line
from quintet.model.dropout import evaluation_mode
from quintet.train.compute import ran_out_of_memory
from quintet.train.engine import TorchEngine
from quintet.train.loss import Objective
from quintet.train.validation import summed_loss

_NOT_DETERMINISTIC = "does not have a deterministic implementation"


def dry_run(engine: TorchEngine, objective: Objective, held_out: int) -> None:
    """Take two steps of ``engine`` with a learning rate of 0, validate one batch, and restore the engine's state.

    The second step needs as much memory as every later one: it has the optimizer's state and, with accumulation, the
    gradients of an earlier pass. The largest batch of the ``held_out`` samples is validated while the optimizer has its
    state. Raises UserError with the setting to change if memory runs out, or if an operation has no deterministic
    kernel and `train.deterministic` demands one.
    """
    config, shape = engine.config, engine.shape
    passes = min(shape.accumulation, 2)
    batch = _batch(config, objective.vocab_size, passes * shape.micro_batch_size)
    with _restored(engine):
        try:
            engine.shape = replace(shape, samples=len(batch.inputs), accumulation=passes)
            for step in (1, 2):
                engine.accumulate(batch, step)
                # The weight decay of some optimizers does not depend on the rate.
                for group in engine.optimizer.param_groups:
                    group.update({"weight_decay": 0.0} if "weight_decay" in group else {})
                # Rprop moves a weight by the sign of its gradient, whatever the rate.
                for parameter in engine.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.zero_()
                engine.update(0.0, step)
        except RuntimeError as error:
            if _NOT_DETERMINISTIC in str(error):
                raise UserError(
                    f"train.deterministic: is true, and PyTorch says: {one_line(error)}; set it to auto or false"
                ) from error
            if not ran_out_of_memory(error):
                raise
            raise UserError(_advice_on_steps(config, shape)) from error
        try:
            _validate(engine, objective, held_out)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise UserError(_advice_on_validation(config)) from error


def _validate(engine: TorchEngine, objective: Objective, held_out: int) -> None:
    """Run the forward pass of the largest validation batch."""
    rows = min(engine.config.validation_batch_size, held_out)
    if rows:
        batch = _batch(engine.config, objective.vocab_size, rows)
        with engine.unsharded(), evaluation_mode(engine.model), torch.no_grad():
            summed_loss(engine.model, objective, batch, engine.compute)


def _batch(config: RunConfig, vocab_size: int, samples: int) -> Batch:
    """Return a batch of ``samples`` in which every target is valid."""
    ids = np.arange(samples * config.data.sequence_length).reshape(samples, -1) % vocab_size
    documents = np.zeros_like(ids) if config.model.tells_documents else None
    prompts = np.ones_like(ids, dtype=bool) if config.model.tells_prompts else None
    return Batch(ids, ids, np.zeros(samples, np.int64), ids.size, documents, prompts)


@contextmanager
def _restored(engine: TorchEngine) -> Generator[None]:
    """Restore the engine's state on exit. The weights need no copy: a learning rate of 0 does not change them."""
    optimizer, scaler, shape = engine.optimizer, engine.scaler, engine.shape
    settings = [_settings(group) for group in optimizer.param_groups]
    scale: dict[str, Any] = scaler.state_dict()
    try:
        yield
    finally:
        engine.shape = shape
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
        for group, before in zip(optimizer.param_groups, settings, strict=True):
            # Some optimizers count their steps in the group.
            for name in _settings(group):
                del group[name]
            group.update(before)
        if scale:
            scaler.load_state_dict(scale)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Copy all of an optimizer's ``group`` except its parameters."""
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}


def _advice_on_steps(config: RunConfig, shape: BatchShape) -> str:
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


def _advice_on_validation(config: RunConfig) -> str:
    size = config.validation_batch_size
    return (
        f"evaluate.batch_size: a validation of {size} samples at a time does not fit the memory of the device beside "
        f"weights and optimizer state; set evaluate.batch_size={max(1, size // 2)}"
    )
