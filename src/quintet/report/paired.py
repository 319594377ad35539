"""Trained models on the same held-out text or samples, and how sure their differences are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quintet.config.documents import IGNORED
from quintet.config.evaluate import TextModelingConfig
from quintet.data.batch import held_out_documents
from quintet.data.prepare import Prepared
from quintet.data.sources.files import passed_over_lines
from quintet.errors import UserError
from quintet.evaluate.bootstrap import RESAMPLES, ConfidenceInterval, paired_bootstrap
from quintet.evaluate.likelihood import token_scores
from quintet.evaluate.model_and_tokenizer import check_text_model
from quintet.evaluate.text_modeling import text_document
from quintet.evaluate.texts import read_topics
from quintet.model.dropout import evaluation_mode
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import digest
from quintet.track.console import Reporter
from quintet.train.trained import TrainedRun, load_trained, own_data
from quintet.train.validation import summed_loss

BLOCK = 2048
"""Bytes of a long document that are drawn together: enough for its words to depend on one another within."""
NATS, BITS = "nats a token", "bits per byte"


@dataclass(frozen=True)
class Losses:
    """Figures of each sample, fp64 [samples]: summed ``losses`` in nats or bits, and the ``weights``, tokens or bytes,
    that they are divided by. Equal ``digest``: equal samples."""

    losses: np.ndarray
    weights: np.ndarray
    digest: str

    @property
    def mean(self) -> float:
        """The loss of a token or a byte."""
        return float(self.losses.sum() / self.weights.sum())


@dataclass(frozen=True)
class Paired:
    """``values`` in ``unit`` of each run on the same ``what``, and of each run but the first its value minus that of
    the first, as ``intervals``."""

    what: str
    unit: str
    values: tuple[float, ...]
    intervals: tuple[ConfidenceInterval, ...]

    def lines(self, names: Sequence[str]) -> list[str]:
        """The differences as a person reads them."""
        lines = [f"{self.unit} on {self.what}, and 95% intervals of the paired bootstrap ({RESAMPLES:,} resamples):"]
        width = max(map(len, names))
        lines.append(f"  {names[0]:{width}}  {self.values[0]:.4f}")
        for name, value, one in zip(names[1:], self.values[1:], self.intervals, strict=True):
            if not math.isfinite(one.difference):
                lines.append(f"  {name:{width}}  {value:.4f}  no difference, for a loss is not finite")
                continue
            word = ("worse" if one.difference > 0 else "better") if one.certain else "not to be told apart"
            lines.append(
                f"  {name:{width}}  {value:.4f}  {one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}] {word}; "
                f"{one.agreeing:.1%} of the resamples agree"
            )
        return lines


@dataclass(frozen=True)
class Asked:
    """The measurement: ``samples`` of the held-out ones, or the texts at ``text``; of a text that is compared at most
    ``max_bytes``, all topics together. ``resamples`` and ``seed`` are the bootstrap's."""

    checkpoint: str = "latest"
    samples: int | None = None
    text: Path | None = None
    max_bytes: int = 200_000
    resamples: int = RESAMPLES
    seed: int = 0
    reporter: Reporter = field(default_factory=Reporter)


def compare_models(runs: Sequence[str], asked: Asked) -> Paired:
    """Measure all ``runs`` on the same: their held-out samples where these are equal, token by token; otherwise the
    documents that all of them hold out; with ``asked.text`` the texts there.

    Documents are measured in bits per byte, so that tokenizers may differ, and cut into blocks of `BLOCK` bytes that
    the bootstrap draws. Raises UserError where the runs hold no document out together, and for a run without a
    checkpoint.
    """
    if asked.text is None:
        found = [_of_samples(load_trained(run, asked.checkpoint), asked) for run in runs]
        if len({one.digest for one in found}) == 1:
            return _paired(found, f"the same {len(found[0].losses):,} held-out samples", NATS, asked)
    texts = _common(runs, asked) if asked.text is None else _read(asked)
    found = [_of_texts(load_trained(run, asked.checkpoint), texts) for run in runs]
    size = sum(len(text.encode("utf-8")) for text in texts)
    where = "that all of them hold out" if asked.text is None else f"in {asked.text}"
    many = "document" if len(texts) == 1 else "documents"
    return _paired(found, f"{len(texts):,} {many} ({size:,} bytes) {where}", BITS, asked)


def _paired(found: Sequence[Losses], what: str, unit: str, asked: Asked) -> Paired:
    first = found[0]
    if not len(first.losses):
        raise UserError(f"compare: {what}: none has a target with a loss; give text to compare on (--text PATH)")
    if len(first.losses) < 2:
        raise UserError(f"compare: {what} are one sample, of which no interval follows; give more text (--text PATH)")
    intervals = tuple(
        paired_bootstrap(one.losses, first.losses, first.weights, resamples=asked.resamples, seed=asked.seed)
        for one in found[1:]
    )
    return Paired(what, unit, tuple(one.mean for one in found), intervals)


def _of_samples(run: TrainedRun, asked: Asked) -> Losses:
    """The loss of each held-out sample, one after the other; those without a target are left out."""
    prepared = own_data(run, asked.reporter)
    if prepared.validation is None:
        raise UserError(f"{run.folder}: holds nothing out; give text to compare on (--text PATH)")
    samples = asked.samples or run.config.evaluate.samples
    losses: list[float] = []
    tokens: list[int] = []
    parts: list[bytes] = []
    with evaluation_mode(run.model):
        for row, plain in enumerate(prepared.validation.batches(1, samples)):
            batch = run.objective.prepare(plain, "validation", first_row=row)
            known = batch.targets != IGNORED
            parts += [plain.inputs.tobytes(), np.where(known, batch.targets, IGNORED).tobytes()]
            if batch.valid:
                losses.append(summed_loss(run.model, run.objective, batch, run.compute))
                tokens.append(batch.valid)
    return Losses(np.array(losses, float), np.array(tokens, float), digest(run.tokenizer.fingerprint, *parts))


def _of_texts(run: TrainedRun, texts: Sequence[str]) -> Losses:
    """The bits of each block of ``texts``, and its bytes."""
    if run.config.loss.kind == "masked":
        raise UserError(f"{run.folder}: learnt to fill in hidden tokens (loss.kind: masked), and gives texts no loss")
    check_text_model(run, str(run.folder))
    lengths = run.tokenizer.bytes_per_token()
    documents = [text_document(run.tokenizer, text) for text in texts]
    bits: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for document, scores in zip(documents, token_scores(run, [one.ids for one in documents]), strict=True):
        found = blocks(scores.nats / math.log(2), lengths[document.ids], document.bytes)
        bits.append(found[0])
        sizes.append(found[1])
    return Losses(np.concatenate(bits), np.concatenate(sizes), "")


def blocks(losses: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The summed losses and the bytes of each `BLOCK` of a document of ``size`` bytes, fp64 [blocks] each, whose tokens
    have ``losses`` and ``lengths`` bytes, [tokens] each.

    The loss of a token is spread evenly over its bytes, so that the blocks are those of the text, whatever its tokens.
    """
    total = float(lengths.sum())
    places = np.concatenate([[0.0], np.cumsum(lengths) * (size / total if total else 0.0)])
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    cuts = np.append(np.arange(0, size, BLOCK), size).astype(float)
    at = np.interp(cuts, places, sums)
    at[0], at[-1] = 0.0, sums[-1]  # tokens without bytes count where the text begins and ends
    return np.diff(at), np.diff(cuts)


def _read(asked: Asked) -> list[str]:
    found = read_topics(TextModelingConfig(path=str(asked.text), max_bytes=asked.max_bytes), "--text")
    for line in passed_over_lines("--text", found.passed):
        asked.reporter.say(line)
    return _up_to(asked.max_bytes, (text for texts in found.topics.values() for text in texts))


def _common(runs: Sequence[str], asked: Asked) -> list[str]:
    """The texts that all ``runs`` hold out whole, in the order of the first."""
    held: list[dict[str, None]] = []
    for run in runs:
        trained = load_trained(run, asked.checkpoint)
        held.append(dict.fromkeys(_held_out(own_data(trained, asked.reporter), trained.tokenizer)))
    common = [text for text in held[0] if text and all(text in other for other in held[1:])]
    if not common:
        raise UserError(
            "compare: the runs hold out different samples and no document together; give text that none of them has "
            "learnt from (--text PATH)"
        )
    return _up_to(asked.max_bytes, common)


def _held_out(prepared: Prepared, tokenizer: Tokenizer) -> Iterable[str]:
    if prepared.validation is None or not tokenizer.lossless:
        return
    for _, document in held_out_documents(prepared.validation, tokenizer):
        if document.whole:
            yield tokenizer.decode(document.ids)


def _up_to(size: int, texts: Iterable[str]) -> list[str]:
    """The first of ``texts`` that have ``size`` bytes together, at least one."""
    found: list[str] = []
    for text in texts:
        size -= len(text.encode("utf-8"))
        if size < 0 and found:
            break
        found.append(text)
    return found
