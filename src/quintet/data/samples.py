"""Samples: consecutive tokens, and which of them are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

_READ_TOGETHER = 1 << 22  # tokens whose masks are looked at together


@dataclass(frozen=True)
class Sample:
    """``ids`` [at most sequence_length + 1]: each but the last is an input and each but the first a target.

    ``loss_mask`` bool says which of them have a loss as targets, all when None. ``documents`` int numbers the document
    of each, from 0; when None all are of one. ``prompts`` bool says which stand in their document before the first that
    has a loss; none when None.
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None = None
    documents: np.ndarray | None = None
    prompts: np.ndarray | None = None


def document_borders(documents: np.ndarray | None, length: int) -> np.ndarray:
    """The begin of each document in ``length`` tokens, and their end: int64 [documents + 1].

    ``documents`` [length] numbers the document of each token; all are of one when None.
    """
    inside = np.empty(0, dtype=np.int64) if documents is None else np.flatnonzero(np.diff(documents)) + 1
    return np.concatenate([[0], inside, [length]]).astype(np.int64)


@dataclass(frozen=True)
class LeftOut:
    """Counts of what training leaves out of a source.

    ``samples`` of ``all_samples`` have no target; ``used`` says if they are trained on all the same. ``tokens`` at the
    ends of ``documents`` found no room. ``empty`` documents hold nothing but their end. ``rest`` tokens at the end of
    the source do not fill a sample. ``short`` pieces of music have too few notes for one.
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
        """The same for a person, nothing where all is there."""
        found: list[str] = []
        if self.empty:
            found.append(f"{self.empty:,} documents hold nothing but their end and are not used")
        if self.short:
            found.append(f"{self.short:,} pieces have fewer than 2 notes and are not used")
        if self.tokens:
            found.append(f"packing cut off {self.tokens:,} tokens at the ends of {self.documents:,} documents")
        if self.rest:
            found.append(f"the last {self.rest:,} tokens do not fill a sample and are not used")
        if self.samples and self.used:
            found.append(
                f"{self.samples:,} of {self.all_samples:,} samples have no target: nothing is learnt from them"
            )
        elif self.samples:
            found.append(f"{self.samples:,} of {self.all_samples:,} samples had no target left and are not used")
        return found


class Samples(Protocol):
    """The samples of a source, each of which can be read by its number."""

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
        """The tokens that are in no sample, and the samples that have no target."""
        ...

    def sample(self, index: int) -> Sample:
        """The sample of that number."""
        ...


class Stream(Protocol):
    """A sequence of tokens that can be read anywhere."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        ...

    def read(self, position: int, length: int) -> np.ndarray:
        """``length`` tokens from ``position`` on, [length] in the dtype of the store."""
        ...

    def loss_mask(self, position: int, length: int) -> np.ndarray | None:
        """True where one of these has a loss, bool [length]; None if all of the stream have."""
        ...

    def documents(self, position: int, length: int) -> np.ndarray:
        """The number of the document of each of these, from 0 in the order in which they come: int64 [length]."""
        ...

    def prompts(self, position: int, length: int) -> np.ndarray | None:
        """True where one of these stands in its document before the first that has a loss, bool [length]; None if all
        of the stream have one."""
        ...


@dataclass(frozen=True)
class Windows:
    """A stream cut every ``sequence_length`` tokens: sample i is its tokens i·T … i·T + T.

    Samples overlap by one token, so that every token but the stream's first is a target once, as far as whole samples
    reach; without ``predict_next`` the last of each sample has no loss, as where a model shifts labels in a window.
    ``without_target`` counts the samples of which nothing has a loss.
    """

    stream: Stream
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
        """Samples of which nothing has a loss, counted by reading which tokens have one."""
        length, together = self.sequence_length, max(1, _READ_TOGETHER // self.sequence_length)
        found = 0
        for first in range(0, self.count, together):
            samples = min(together, self.count - first)
            loss_mask = self.stream.loss_mask(first * length + 1, samples * length)
            if loss_mask is None:
                return 0
            targets = loss_mask.reshape(samples, length)[:, : length if self.predict_next else length - 1]
            found += int((~targets.any(1)).sum())
        return found

    def sample(self, index: int) -> Sample:
        start, size = index * self.sequence_length, self.sequence_length + 1
        loss_mask = self.stream.loss_mask(start, size)
        if not self.predict_next:
            loss_mask = np.ones(size, dtype=bool) if loss_mask is None else loss_mask.copy()
            loss_mask[-1] = False
        documents, prompts = self.stream.documents(start, size), self.stream.prompts(start, size)
        return Sample(self.stream.read(start, size), loss_mask, documents, prompts)
