"""Samples of consecutive tokens, and the masks of the targets that count in the loss."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quintet.data.split import TokenStream

_READ_TOGETHER = 1 << 22  # tokens whose masks are read at once


@dataclass(frozen=True)
class Sample:
    """``ids`` [at most sequence_length + 1]: each but the last is an input and each but the first a target.

    The others have the same shape. ``loss_mask`` bool is True for ids with a loss as targets; None if all have one.
    ``documents`` int numbers the document of each id, from 0; None if all are of one. ``prompts`` bool is True for ids
    before the first with a loss in their document; None if there are none.
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None = None
    documents: np.ndarray | None = None
    prompts: np.ndarray | None = None


def document_borders(documents: np.ndarray | None, length: int) -> np.ndarray:
    """Return the first position of each document, then ``length``: int64 [documents + 1].

    ``documents`` [length] numbers the document of each token; None if all are of one.
    """
    inside = np.empty(0, dtype=np.int64) if documents is None else np.flatnonzero(np.diff(documents)) + 1
    return np.concatenate([[0], inside, [length]]).astype(np.int64)


@dataclass(frozen=True)
class LeftOut:
    """Counts of what training does not use of a source.

    ``samples`` of ``all_samples`` have no target, and are trained on nevertheless if ``used``. ``tokens`` at the ends
    of ``documents`` had no room. ``empty`` documents hold nothing but their end. ``rest`` tokens at the end of the
    source do not fill a sample. ``short`` pieces of music have too few notes for one.
    """

    samples: int = 0
    all_samples: int = 0
    tokens: int = 0
    documents: int = 0
    empty: int = 0
    rest: int = 0
    short: int = 0
    used: bool = False

    def lines(self) -> list[str]:
        """Describe the counts, one sentence per kind; empty if all is used."""
        lines: list[str] = []
        if self.empty:
            lines.append(f"{self.empty:,} documents hold nothing but their end and are not used")
        if self.short:
            lines.append(f"{self.short:,} pieces have fewer than 2 notes and are not used")
        if self.tokens:
            lines.append(f"packing cut off {self.tokens:,} tokens at the ends of {self.documents:,} documents")
        if self.rest:
            lines.append(f"the last {self.rest:,} tokens do not fill a sample and are not used")
        if self.samples and self.used:
            lines.append(
                f"{self.samples:,} of {self.all_samples:,} samples have no target: they add nothing to the loss"
            )
        elif self.samples:
            lines.append(f"{self.samples:,} of {self.all_samples:,} samples had no target left and are not used")
        return lines


class Samples(Protocol):
    """The samples of a source, which are read by their numbers."""

    @property
    def tokens(self) -> int:
        """Tokens that the samples are cut from."""
        ...

    @property
    def count(self) -> int:
        """Samples are 0 … count - 1."""
        ...

    @property
    def left_out(self) -> LeftOut:
        """The tokens that are in no sample, and the samples without a target."""
        ...

    def sample(self, index: int) -> Sample:
        """Return the sample with the number ``index``."""
        ...


@dataclass(frozen=True)
class Windows:
    """A stream cut every ``sequence_length`` tokens, T: sample i is its tokens i·T … i·T + T.

    Samples overlap by one token, so that each token but the stream's first is a target once, up to the end of the last
    whole sample. Without ``predict_next`` the last token of a sample has no loss, as in models that shift labels within
    a window. ``without_target`` counts the samples without any loss.
    """

    stream: TokenStream
    sequence_length: int
    predict_next: bool = True
    without_target: int = 0

    @property
    def tokens(self) -> int:
        return self.stream.length

    @property
    def count(self) -> int:
        return max(0, (self.stream.length - 1) // self.sequence_length)

    @property
    def left_out(self) -> LeftOut:
        used = self.count * self.sequence_length + 1 if self.count else 0
        return LeftOut(self.without_target, self.count, rest=self.stream.length - used, used=True)

    def count_without_target(self) -> int:
        """Count the samples without any loss by reading all loss masks."""
        length, together = self.sequence_length, max(1, _READ_TOGETHER // self.sequence_length)
        count = 0
        for first in range(0, self.count, together):
            samples = min(together, self.count - first)
            loss_mask = self.stream.loss_mask(first * length + 1, samples * length)
            if loss_mask is None:
                return 0
            targets = loss_mask.reshape(samples, length)[:, : length if self.predict_next else length - 1]
            count += int((~targets.any(1)).sum())
        return count

    def sample(self, index: int) -> Sample:
        start, size = index * self.sequence_length, self.sequence_length + 1
        loss_mask = self.stream.loss_mask(start, size)
        if not self.predict_next:
            loss_mask = np.ones(size, dtype=bool) if loss_mask is None else loss_mask.copy()
            loss_mask[-1] = False
        documents, prompts = self.stream.documents(start, size), self.stream.prompts(start, size)
        return Sample(self.stream.read(start, size), loss_mask, documents, prompts)
