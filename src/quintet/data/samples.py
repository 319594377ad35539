"""What a sample is: tokens that stand behind one another, and what of them is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """``ids`` [at most sequence_length + 1]: each but the last is an input and each but the first a target.

    ``learnt`` bool says which of them have a loss as targets, all when None. ``documents`` int numbers the document of
    each, from 0; when None all are of one. ``prompts`` bool says which stand in their document before the first that
    has a loss; none when None.
    """

    ids: np.ndarray
    learnt: np.ndarray | None = None
    documents: np.ndarray | None = None
    prompts: np.ndarray | None = None


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
        """``length`` tokens from ``position`` on."""
        ...

    def learnt(self, position: int, length: int) -> np.ndarray | None:
        """Which of these have a loss, bool [length]; None where all of the stream have."""
        ...

    def documents(self, position: int, length: int) -> np.ndarray:
        """The number of the document of each of these, from 0 in the order in which they come: int64 [length]."""
        ...

    def prompts(self, position: int, length: int) -> np.ndarray | None:
        """Which of these stand in their document before the first that has a loss, bool [length]; None where all of the
        stream have one."""
        ...


@dataclass(frozen=True)
class Windows:
    """A stream cut every ``sequence_length`` tokens: sample i is its tokens i·T … i·T + T.

    Samples overlap by one token, so that every token but the stream's first is a target once, as far as whole samples
    reach; without ``predict_next`` the last of each sample has no loss, as where a model shifts labels in a window.
    """

    stream: Stream
    sequence_length: int
    predict_next: bool = True

    @property
    def tokens(self) -> int:
        return self.stream.length

    @property
    def count(self) -> int:
        return max(0, (self.stream.length - 1) // self.sequence_length)

    def sample(self, index: int) -> Sample:
        start, size = index * self.sequence_length, self.sequence_length + 1
        learnt = self.stream.learnt(start, size)
        if not self.predict_next:
            learnt = np.ones(size, dtype=bool) if learnt is None else learnt.copy()
            learnt[-1] = False
        documents, prompts = self.stream.documents(start, size), self.stream.prompts(start, size)
        return Sample(self.stream.read(start, size), learnt, documents, prompts)
