"""Validation loss: always the same samples, in evaluation mode, in the precision of the training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from quintet.data.batch import Batch
from quintet.model import Model
from quintet.train.compute import Compute
from quintet.train.loss import IGNORED
from quintet.train.objective import Objective


@dataclass(frozen=True)
class ValidationResult:
    """``loss`` in nats a token, over ``tokens`` targets that stand for ``bytes`` of text."""

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """e to the loss, infinite where that is beyond a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model spends on a byte of text; comparable between tokenizers."""
        return self.loss * self.tokens / (math.log(2) * self.bytes) if self.bytes else math.nan

    def metrics(self) -> dict[str, float]:
        """The figures under the names that trackers show."""
        return {
            "validation/loss": self.loss,
            "validation/perplexity": self.perplexity,
            "validation/bits_per_byte": self.bits_per_byte,
        }


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within, and ``model`` as it was afterwards, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def validate(
    model: Model,
    objective: Objective,
    batches: Iterable[Batch],
    compute: Compute,
    *,
    bytes_per_token: np.ndarray,
) -> ValidationResult:
    """Mean cross-entropy of ``model`` over the valid targets of ``batches``; with the masked loss, always the same
    tokens are hidden.

    ``bytes_per_token`` [vocab] says how many bytes of text an id stands for. The sum is kept in fp64 on the host, so
    that the result does not depend on how the samples are batched beyond the rounding of the losses themselves.
    """
    total, rows, tokens, size = 0.0, 0, 0, 0
    with evaluation_mode(model):
        for unmasked in batches:
            batch = objective.prepare(unmasked, "validation", first_row=rows)
            rows += len(batch.inputs)
            inputs = torch.from_numpy(batch.inputs).to(compute.device)
            targets = torch.from_numpy(batch.targets).to(compute.device)
            with compute.autocast():
                loss = objective.loss(model, inputs, targets, plain=True)
            total += loss.item()
            tokens += batch.valid
            size += int(bytes_per_token[batch.targets[batch.targets != IGNORED]].sum())
    return ValidationResult(total / max(tokens, 1), tokens, size)
