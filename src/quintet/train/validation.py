"""Validation: the loss on held-out samples, in evaluation mode and in the precision of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from quintet.config.documents import IGNORED
from quintet.data.batch import Batch
from quintet.model import Model
from quintet.model.dropout import evaluation_mode
from quintet.model.typed import from_array
from quintet.processes import all_gather, rank, world_size
from quintet.train.compute import Compute
from quintet.train.loss import Objective


@dataclass(frozen=True)
class ValidationResult:
    """The ``loss`` in nats a token over ``tokens`` targets, which are ``bytes`` of text; NaN without a target.

    If the sources have several labels, ``labels`` has the result of each label with a target.
    """

    loss: float
    tokens: int
    bytes: int
    labels: Mapping[str, ValidationResult] = field(default_factory=lambda: {})

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite if it is beyond the range of a float.

        >>> ValidationResult(loss=0.0, tokens=1, bytes=1).perplexity
        1.0
        """
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits of loss per byte of text, comparable between tokenizers; NaN without text."""
        return self.loss * self.tokens / (math.log(2) * self.bytes) if self.bytes else math.nan

    def __str__(self) -> str:
        """Return the figures as text; bits per byte only if the tokens stand for text."""
        if not self.tokens:
            return "no figure, because no target has a loss"
        figures = f"{self.loss:.4f} nats a token, perplexity {self.perplexity:.2f}"
        return f"{self.bits_per_byte:.4f} bits per byte, {figures}" if self.bytes else figures

    def of(self, label: str | None) -> ValidationResult:
        """Return the result of ``label``; the whole result if ``label`` is None or there are no labels."""
        if label is None or not self.labels:
            return self
        return self.labels.get(label, NOTHING)

    def metrics(self) -> dict[str, float]:
        """Return the figures by their names for trackers, such as ``validation/<label>/loss``; {} without a target."""
        figures: dict[str, float] = {}
        groups = {"validation": self} | {f"validation/{name}": result for name, result in self.labels.items()}
        for group, result in groups.items():
            if not result.tokens:
                continue
            figures[f"{group}/loss"] = result.loss
            figures[f"{group}/perplexity"] = result.perplexity
            if result.bytes:
                figures[f"{group}/bits_per_byte"] = result.bits_per_byte
        return figures

    def lines(self) -> list[str]:
        """Return the figures of each label as lines of text."""
        width = max(map(len, self.labels), default=0)
        return [f"  {name:{width}} {result} over {result.tokens:,} tokens" for name, result in self.labels.items()]


NOTHING = ValidationResult(math.nan, 0, 0)
"""The result without a target."""


@torch.no_grad()
def validate(
    model: Model,
    objective: Objective,
    batches: Iterable[Batch],
    compute: Compute,
    *,
    bytes_per_token: np.ndarray,
    labels: Sequence[str] = (),
) -> ValidationResult:
    """Return the mean cross-entropy of ``model`` over the valid targets of ``batches``.

    ``bytes_per_token``, int [vocab], is the number of bytes of text of each id. ``labels`` has the label of each
    source; sources of one label are pooled, and each label gets a result of its own. The masked loss hides the same
    tokens each time. Sums are kept in fp64 on the host, so that the batch size changes no more than the rounding of
    each loss. Several processes take whole batches in turn; all make the same number of passes and get the same result.
    """
    names = list(dict.fromkeys(labels)) or [""]
    group = np.array([names.index(label) for label in labels] or [0])
    sums = [_Sum() for _ in names]
    parts = _parts(batches, group if len(names) > 1 else None)
    with evaluation_mode(model):
        while turn := list(islice(parts, world_size())):
            mine = rank() < len(turn)
            # Sharded weights need all processes in each pass, also those without a batch of their own in the last.
            part = turn[rank() if mine else 0]
            batch = rows_of(objective.prepare(part.batch, "validation", first_row=part.first_row), part.rows)
            loss = summed_loss(model, objective, batch, compute)
            if mine:
                total = sums[part.label]
                total.loss += loss
                total.tokens += batch.valid
                total.bytes += int(bytes_per_token[batch.targets[batch.targets != IGNORED]].sum())
    sums = [_pooled(parts) for parts in zip(*all_gather(sums), strict=True)]
    results = {name: total.result() for name, total in zip(names, sums, strict=True) if total.tokens}
    return _pooled(sums).result(results if len(names) > 1 else {})


@dataclass(frozen=True)
class _Part:
    """The samples ``rows``, bool [samples], of ``batch`` that have the ``label`` of this number.

    The first sample of ``batch`` is number ``first_row`` of the validation.
    """

    batch: Batch
    first_row: int
    label: int
    rows: np.ndarray


def _parts(batches: Iterable[Batch], group: np.ndarray | None) -> Iterator[_Part]:
    """Yield the samples of each batch by label; ``group``, int64 [sources], has the label number of each source."""
    first_row = 0
    for batch in batches:
        size = len(batch.inputs)
        labels = np.zeros(size, dtype=np.int64) if group is None else group[batch.sources]
        for label in np.unique(labels).tolist():
            yield _Part(batch, first_row, label, labels == label)
        first_row += size


@dataclass
class _Sum:
    """A summed loss in nats, and the numbers of targets and bytes in the sum."""

    loss: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def result(self, labels: Mapping[str, ValidationResult] | None = None) -> ValidationResult:
        loss = self.loss / self.tokens if self.tokens else math.nan
        return ValidationResult(loss, self.tokens, self.bytes, labels or {})


def _pooled(parts: Sequence[_Sum]) -> _Sum:
    return _Sum(sum(part.loss for part in parts), sum(part.tokens for part in parts), sum(part.bytes for part in parts))


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Return the samples of ``batch`` for which ``rows``, bool [samples], is True."""
    if rows.all():
        return batch
    targets = batch.targets[rows]
    documents, prompts = (None if mask is None else mask[rows] for mask in (batch.documents, batch.prompts))
    return Batch(batch.inputs[rows], targets, batch.sources[rows], int((targets != IGNORED).sum()), documents, prompts)


def summed_loss(model: Model, objective: Objective, batch: Batch, compute: Compute) -> float:
    """Return the summed cross-entropy in nats of ``batch``, which `Objective.prepare` returned."""
    arrays = (batch.inputs, batch.targets, batch.documents, batch.prompts)
    tensors = [None if array is None else from_array(array).to(compute.device) for array in arrays]
    inputs, targets, documents, prompts = tensors
    assert inputs is not None
    assert targets is not None
    with compute.autocast():
        return objective.loss(model, inputs, targets, documents, prompts, plain=True).item()
