"""Text modelling: bits per byte, byte perplexity, accuracy and calibration of a model on text, by topic.

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
"""Bins of the calibration error, as in Guo et al. 2017, On Calibration of Modern Neural Networks."""


@dataclass(frozen=True)
class TextDocument:
    """``ids``, int [tokens], of a text of ``bytes`` UTF-8 bytes. Only tokens in ``loss_mask``, bool [tokens], are
    measured; all of them if it is None."""

    ids: np.ndarray
    bytes: int
    loss_mask: np.ndarray | None = None


@dataclass(frozen=True)
class TextResult:
    """Sums over the measured tokens of a topic. ``matched`` counts the bytes of the text that the likeliest token has
    in the same place; ``squares`` sums (confidence - hit)². The last three, [bins], count tokens, sum the confidence
    and count hits in each bin of confidence."""

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
        """Bits that the model spends on a byte of the text."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan

    @property
    def byte_perplexity(self) -> float:
        """2 to the power of the bits per byte: a choice among so many equally likely bytes is as uncertain."""
        return 2.0**self.bits_per_byte

    @property
    def accuracy(self) -> float:
        """Share of the tokens that are the likeliest in their place."""
        return self.hits / self.tokens if self.tokens else math.nan

    @property
    def byte_accuracy(self) -> float:
        """Share of the bytes that the likeliest token has in the same place."""
        return self.matched / self.bytes if self.bytes else math.nan

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean gap of confidence and accuracy over `BINS` equal bins of confidence."""
        gaps = np.abs(self.bin_hits - self.bin_confidence).sum()
        return float(gaps / self.tokens) if self.tokens else math.nan

    @property
    def brier(self) -> float:
        """Brier score of the likeliest token: the mean of (confidence - hit)²."""
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
        """Return the figures by the names that trackers show: ``text/bits_per_byte`` of all topics pooled, and
        ``text/<topic>/bits_per_byte`` of each topic that has text."""
        rows = {"text": self.whole, **{f"text/{name}": result for name, result in self.topics.items()}}
        return {
            f"{group}/{name}": value
            for group, result in rows.items()
            if result.bytes
            for name, value in result.figures().items()
        }

    def lines(self) -> list[str]:
        """Return the lines of a table."""
        rows = [*self.topics.items(), *([("all", self.whole)] if len(self.topics) > 1 else [])]
        width = max(*(len(name) for name, _ in rows), len("topic"))
        heads = ("bits/byte", "byte ppl", "accuracy", "byte acc", "calib err", "Brier")
        lines = [f"{'topic':{width}}  {'  '.join(f'{head:>9}' for head in heads)}  {'tokens':>9}  {'bytes':>9}"]
        for name, result in rows:
            figures = "  ".join(f"{value:9.4f}" for value in result.figures().values())
            lines.append(f"{name:{width}}  {figures}  {result.tokens:9,}  {result.bytes:9,}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the figures and counts of each topic and of all."""
        topics = {name: _as_json(result) for name, result in self.topics.items()}
        return {"topics": topics, "all": _as_json(self.whole)}


def _as_json(result: TextResult) -> dict[str, float]:
    return {"documents": result.documents, "tokens": result.tokens, "bytes": result.bytes, **result.figures()}


def text_document(tokenizer: Tokenizer, text: str) -> TextDocument:
    """Encode ``text``. All its bytes count, including those that the tokenizer loses."""
    return TextDocument(np.array(tokenizer.encode(text), dtype=np.int64), len(text.encode("utf-8")))


def model_text(
    language_model: ModelAndTokenizer, topics: Mapping[str, Sequence[TextDocument]], stride: int | None = None
) -> TextModeling:
    """Measure the model on the documents of each topic. Raises UserError as `token_scores` and `check_text_model`."""
    check_text_model(language_model, "evaluate.text_modeling")
    table = byte_table(language_model.tokenizer)
    results: dict[str, TextResult] = {}
    for name, documents in topics.items():
        scores = token_scores(language_model, [document.ids for document in documents], stride)
        pairs = zip(documents, scores, strict=True)
        results[name] = sum((document_result(document, score, *table) for document, score in pairs), TextResult())
    return TextModeling(results)


def byte_table(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of each id, uint8 [vocab, longest], padded with zeros, and their number, int64 [vocab]."""
    pieces = tokenizer.pieces.table
    lengths = tokenizer.bytes_per_token()
    table = np.zeros((len(lengths), int(lengths.max(initial=1))), dtype=np.uint8)
    for index, piece in enumerate(pieces[: len(lengths)]):
        part = piece[: table.shape[1]]
        table[index, : len(part)] = np.frombuffer(part, dtype=np.uint8)
    return table, lengths


def document_result(document: TextDocument, scores: TokenScores, table: np.ndarray, lengths: np.ndarray) -> TextResult:
    """Return the sums over one document; ``table``, uint8 [vocab, longest], and ``lengths``, int64 [vocab], are those
    of `byte_table`.

    A byte of a token is matched if the likeliest token has the same byte at the same offset.
    """
    loss_mask = np.ones(len(document.ids), dtype=bool) if document.loss_mask is None else document.loss_mask
    ids, guess = document.ids[loss_mask].astype(np.int64), scores.guess[loss_mask]
    confidence, hit = scores.confidence[loss_mask], ids == guess
    has_text = (guess >= 0) & (guess < len(lengths))  # a model may have more rows than there are ids
    guess = np.where(has_text, guess, 0)
    both: np.ndarray = np.where(has_text, np.minimum(lengths[ids], lengths[guess]), 0)
    same: np.ndarray = (table[ids] == table[guess]) & (np.arange(int(table.shape[1])) < both[:, None])
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return TextResult(
        documents=1,
        tokens=len(ids),
        bytes=document.bytes,
        nats=float(scores.nats[loss_mask].sum()),
        hits=int(hit.sum()),
        # The first token of a text may begin with a space that the text does not have.
        matched=min(int(same.sum()), document.bytes),
        squares=float(((confidence - hit) ** 2).sum()),
        bin_tokens=np.bincount(bins, minlength=BINS),
        bin_confidence=np.bincount(bins, weights=confidence, minlength=BINS),
        bin_hits=np.bincount(bins, weights=hit, minlength=BINS).astype(np.int64),
    )
