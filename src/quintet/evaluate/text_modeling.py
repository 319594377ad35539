"""Text modelling: bits per byte, byte perplexity, accuracy and calibration of a model, by topic.

The formulas are in docs/guide/text-modeling.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quintet.evaluate.likelihood import TokenScores, token_scores
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer, check_text_model
from quintet.tokenize import Tokenizer

BINS = 15
"""Bins of the calibration error: Guo et al. 2017, On Calibration of Modern Neural Networks, took as many."""


@dataclass(frozen=True)
class TextDocument:
    """``ids`` int [tokens] of a text of ``bytes`` UTF-8 bytes; of tokens without ``loss_mask``, bool [tokens] or None
    for all, nothing is measured."""

    ids: np.ndarray
    bytes: int
    loss_mask: np.ndarray | None = None


@dataclass(frozen=True)
class TextResult:
    """Sums over the measured tokens of a topic. ``matched`` are bytes of the text that the likeliest token has in their
    place; ``squares`` sums (confidence - hit)²; the last three, [bins], count tokens and sum confidence and hits."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0
    hits: int = 0
    matched: int = 0
    squares: float = 0.0
    bin_tokens: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    bin_confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    bin_hits: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def __add__(self, other: TextResult) -> TextResult:
        return TextResult(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model spends on a byte of the text, every byte of it counted."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan

    @property
    def byte_perplexity(self) -> float:
        """2 to the bits per byte: among how many equally likely bytes the model is as uncertain."""
        return 2.0**self.bits_per_byte

    @property
    def accuracy(self) -> float:
        """Part of the tokens that were the likeliest."""
        return self.hits / self.tokens if self.tokens else math.nan

    @property
    def byte_accuracy(self) -> float:
        """Part of the bytes that the likeliest token has in their place."""
        return self.matched / self.bytes if self.bytes else math.nan

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy over `BINS` equal bins of confidence."""
        gaps = np.abs(self.bin_hits - self.bin_confidence).sum()
        return float(gaps / self.tokens) if self.tokens else math.nan

    @property
    def brier(self) -> float:
        """Brier score of the likeliest token: mean of (confidence - hit)²."""
        return self.squares / self.tokens if self.tokens else math.nan

    def figures(self) -> dict[str, float]:
        """Return the figures by name."""
        names = ("bits_per_byte", "byte_perplexity", "accuracy", "byte_accuracy", "calibration_error", "brier")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TextModeling:
    """The result of each topic."""

    topics: Mapping[str, TextResult]

    @property
    def whole(self) -> TextResult:
        """All topics pooled."""
        return sum(self.topics.values(), TextResult())

    def metrics(self) -> dict[str, float]:
        """The figures under the names that trackers show: ``text/bits_per_byte`` of all topics pooled, and
        ``text/<topic>/bits_per_byte``; those of a topic without a token are left out."""
        rows = {"text": self.whole, **{f"text/{name}": one for name, one in self.topics.items()}}
        return {
            f"{group}/{name}": value
            for group, one in rows.items()
            if one.bytes
            for name, value in one.figures().items()
        }

    def lines(self) -> list[str]:
        """A table as a person reads it."""
        rows = [*self.topics.items(), *([("all", self.whole)] if len(self.topics) > 1 else [])]
        width = max(*(len(name) for name, _ in rows), len("topic"))
        heads = ("bits/byte", "byte ppl", "accuracy", "byte acc", "calib err", "Brier")
        lines = [f"{'topic':{width}}  {'  '.join(f'{head:>9}' for head in heads)}  {'tokens':>9}  {'bytes':>9}"]
        for name, one in rows:
            figures = "  ".join(f"{value:9.4f}" for value in one.figures().values())
            lines.append(f"{name:{width}}  {figures}  {one.tokens:9,}  {one.bytes:9,}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The figures of each topic and of all, with what they are over."""
        return {"topics": {name: _counted(one) for name, one in self.topics.items()}, "all": _counted(self.whole)}


def _counted(result: TextResult) -> dict[str, float]:
    return {"documents": result.documents, "tokens": result.tokens, "bytes": result.bytes, **result.figures()}


def text_document(tokenizer: Tokenizer, text: str) -> TextDocument:
    """``text`` as the model reads it; all its bytes count, also those that the tokenizer loses."""
    return TextDocument(np.array(tokenizer.encode(text), dtype=np.int64), len(text.encode("utf-8")))


def model_text(
    language_model: ModelAndTokenizer, topics: Mapping[str, Sequence[TextDocument]], stride: int | None = None
) -> TextModeling:
    """Measure the model on the documents of each topic. Raises UserError as `token_scores` and
    `check_text_model`."""
    check_text_model(language_model, "evaluate.text_modeling")
    table = byte_table(language_model.tokenizer)
    found = {}
    for name, documents in topics.items():
        scores = token_scores(language_model, [one.ids for one in documents], stride)
        results = (document_result(one, score, *table) for one, score in zip(documents, scores, strict=True))
        found[name] = sum(results, TextResult())
    return TextModeling(found)


def byte_table(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of each id, uint8 [vocab, longest] with zeros after them, and how many there are, int64 [vocab]."""
    pieces = tokenizer.pieces.table
    lengths = tokenizer.bytes_per_token()
    table = np.zeros((len(lengths), int(lengths.max(initial=1))), dtype=np.uint8)
    for index, piece in enumerate(pieces[: len(lengths)]):
        part = piece[: table.shape[1]]
        table[index, : len(part)] = np.frombuffer(part, dtype=np.uint8)
    return table, lengths


def document_result(document: TextDocument, scores: TokenScores, table: np.ndarray, lengths: np.ndarray) -> TextResult:
    """The sums of one document.

    ``table`` holds the bytes of each id, uint8 [vocabulary, longest], ``lengths`` their number, int64 [vocabulary]. A
    byte of the text is matched where the likeliest token has the same at its offset in the token; what that token is
    too short for is not.
    """
    loss_mask = np.ones(len(document.ids), dtype=bool) if document.loss_mask is None else document.loss_mask
    ids, guess = document.ids[loss_mask].astype(np.int64), scores.guess[loss_mask]
    confidence, hit = scores.confidence[loss_mask], ids == guess
    writes = (guess >= 0) & (guess < len(lengths))  # a model may have more rows than there are ids
    chosen = np.where(writes, guess, 0)
    both = np.where(writes, np.minimum(lengths[ids], lengths[chosen]), 0)
    same = (table[ids] == table[chosen]) & (np.arange(table.shape[1]) < both[:, None])
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return TextResult(
        documents=1,
        tokens=len(ids),
        bytes=document.bytes,
        nats=float(scores.nats[loss_mask].sum()),
        hits=int(hit.sum()),
        # The first token of a text may stand for a space that the text has not.
        matched=min(int(same.sum()), document.bytes),
        squares=float(((confidence - hit) ** 2).sum()),
        bin_tokens=np.bincount(bins, minlength=BINS),
        bin_confidence=np.bincount(bins, weights=confidence, minlength=BINS),
        bin_hits=np.bincount(bins, weights=hit, minlength=BINS).astype(np.int64),
    )
