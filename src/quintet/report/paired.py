"""The losses of trained models on the same held-out samples or texts, and confidence intervals of their differences."""

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
from quintet.evaluate.likelihood import token_scores
from quintet.evaluate.model_and_tokenizer import check_text_model
from quintet.evaluate.text_modeling import text_document
from quintet.evaluate.topics import read_topics
from quintet.model.dropout import evaluation_mode
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import digest
from quintet.track.console import Reporter
from quintet.train.trained import TrainedRun, load_trained, own_data
from quintet.train.validation import summed_loss

BLOCK = 2048
"""Bytes of a long document that the bootstrap draws together, because neighbouring words depend on each other."""
NATS, BITS = "nats a token", "bits per byte"
RESAMPLES = 10_000
_DRAWN = 1 << 22  # numbers that are drawn at once


@dataclass(frozen=True)
class ConfidenceInterval:
    """The difference of two means and its confidence interval from ``low`` to ``high``. ``agreeing`` is the share of
    resamples in which the difference has the same sign as in the samples."""

    difference: float
    low: float
    high: float
    agreeing: float
    samples: int

    @property
    def certain(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> ConfidenceInterval:
    """Return the interval of Σa / Σw - Σb / Σw, where sample i has the losses a_i and b_i over w_i tokens or bytes.

    ``a``, ``b`` and ``weights`` are [samples] of any dtype, the weights positive. The samples are drawn with
    replacement ``resamples`` times, the same ones for both models (Koehn 2004, Statistical Significance Tests for
    Machine Translation Evaluation). The interval goes from the (1 - level) / 2 quantile of the differences to the
    (1 + level) / 2 quantile: the percentile interval (Efron and Tibshirani 1993, chapter 13). A pure function of its
    arguments.
    """
    assert len(a) == len(b) == len(weights) > 0
    assert weights.min() > 0
    gaps, weights = np.asarray(a, np.float64) - np.asarray(b, np.float64), np.asarray(weights, np.float64)
    random, count = np.random.default_rng(seed), len(gaps)
    parts: list[np.ndarray] = []
    for start in range(0, resamples, max(1, _DRAWN // count)):
        rows = min(resamples - start, max(1, _DRAWN // count))
        drawn = random.integers(count, size=(rows, count))
        parts.append(gaps[drawn].sum(1) / weights[drawn].sum(1))
    differences = np.concatenate(parts)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    difference = float(gaps.sum() / weights.sum())
    agreeing = float((np.sign(differences) == np.sign(difference)).mean())
    return ConfidenceInterval(difference, float(low), float(high), agreeing, count)


@dataclass(frozen=True)
class Losses:
    """Figures of each sample, fp64 [samples]: the summed ``losses`` in nats or bits, and as ``weights`` the tokens or
    bytes to divide by. Samples with the same ``digest`` are equal."""

    losses: np.ndarray
    weights: np.ndarray
    digest: str

    @property
    def mean(self) -> float:
        """The mean loss of a token or a byte."""
        return float(self.losses.sum() / self.weights.sum())


@dataclass(frozen=True)
class Paired:
    """The ``values``, in ``unit``, of all runs on the same ``what``, and the ``intervals`` of the differences between
    each further run and the first."""

    what: str
    unit: str
    values: tuple[float, ...]
    intervals: tuple[ConfidenceInterval, ...]

    def lines(self, names: Sequence[str]) -> list[str]:
        """Return the lines of a table; ``names`` are those of the runs."""
        lines = [f"{self.unit} on {self.what}, and 95% intervals of the paired bootstrap ({RESAMPLES:,} resamples):"]
        width = max(map(len, names))
        lines.append(f"  {names[0]:{width}}  {self.values[0]:.4f}")
        for name, value, interval in zip(names[1:], self.values[1:], self.intervals, strict=True):
            difference = interval.difference
            if not math.isfinite(difference):
                lines.append(f"  {name:{width}}  {value:.4f}  no difference, because a loss is not finite")
                continue
            verdict = ("worse" if difference > 0 else "better") if interval.certain else "no clear difference"
            lines.append(
                f"  {name:{width}}  {value:.4f}  {difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] "
                f"{verdict}; {interval.agreeing:.1%} of the resamples agree"
            )
        return lines


@dataclass(frozen=True)
class CompareOptions:
    """What is compared: ``samples`` held-out samples, or at most ``max_bytes`` bytes of the texts at ``text``, all
    topics together. ``resamples`` and ``seed`` are those of the bootstrap."""

    checkpoint: str = "latest"
    samples: int | None = None
    text: Path | None = None
    max_bytes: int = 200_000
    resamples: int = RESAMPLES
    seed: int = 0
    reporter: Reporter = field(default_factory=Reporter)


def compare_models(runs: Sequence[str], options: CompareOptions) -> Paired:
    """Measure all ``runs`` on the same data.

    With ``options.text`` these are the texts there. Otherwise they are the held-out samples, token by token, if all
    runs have the same ones, and else the documents that all runs hold out. Documents are measured in bits per byte, so
    that tokenizers may differ, and cut into blocks of `BLOCK` bytes, which the bootstrap draws. Raises UserError if the
    runs hold out no common document, and for a run without a checkpoint.
    """
    if options.text is None:
        losses = [_sample_losses(load_trained(run, options.checkpoint), options) for run in runs]
        if len({of_run.digest for of_run in losses}) == 1:
            return _compare(losses, f"the same {len(losses[0].losses):,} held-out samples", NATS, options)
    texts = _common_texts(runs, options) if options.text is None else _read_texts(options)
    losses = [_text_losses(load_trained(run, options.checkpoint), texts) for run in runs]
    size = sum(len(text.encode("utf-8")) for text in texts)
    where = "that all of them hold out" if options.text is None else f"in {options.text}"
    many = "document" if len(texts) == 1 else "documents"
    return _compare(losses, f"{len(texts):,} {many} ({size:,} bytes) {where}", BITS, options)


def _compare(losses: Sequence[Losses], what: str, unit: str, options: CompareOptions) -> Paired:
    first = losses[0]
    if not len(first.losses):
        raise UserError(f"compare: {what}: none has a target with a loss; give text to compare on (--text PATH)")
    if len(first.losses) < 2:
        raise UserError(f"compare: {what} are one sample, which gives no interval; give more text (--text PATH)")
    intervals = tuple(
        paired_bootstrap(other.losses, first.losses, first.weights, resamples=options.resamples, seed=options.seed)
        for other in losses[1:]
    )
    return Paired(what, unit, tuple(of_run.mean for of_run in losses), intervals)


def _sample_losses(run: TrainedRun, options: CompareOptions) -> Losses:
    """Return the loss of each held-out sample that has a target."""
    prepared = own_data(run, options.reporter)
    if prepared.validation is None:
        raise UserError(f"{run.folder}: holds nothing out; give text to compare on (--text PATH)")
    samples = options.samples or run.config.evaluate.samples
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


def _text_losses(run: TrainedRun, texts: Sequence[str]) -> Losses:
    """Return the bits and the bytes of each block of ``texts``."""
    if run.config.loss.kind == "masked":
        raise UserError(
            f"{run.folder}: was trained to fill in hidden tokens (loss.kind: masked), and gives texts no loss"
        )
    check_text_model(run, str(run.folder))
    lengths = run.tokenizer.bytes_per_token()
    documents = [text_document(run.tokenizer, text) for text in texts]
    bits: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for document, scores in zip(documents, token_scores(run, [document.ids for document in documents]), strict=True):
        block_bits, block_sizes = blocks(scores.nats / math.log(2), lengths[document.ids], document.bytes)
        bits.append(block_bits)
        sizes.append(block_sizes)
    return Losses(np.concatenate(bits), np.concatenate(sizes), "")


def blocks(losses: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed losses and the bytes of each `BLOCK` of a document of ``size`` bytes, fp64 [blocks] each.

    ``losses`` are those of its tokens, ``lengths`` their bytes, [tokens] each. The loss of a token is spread evenly
    over its bytes, so that the blocks depend only on the text.
    """
    total = float(lengths.sum())
    ends = np.concatenate([[0.0], np.cumsum(lengths) * (size / total if total else 0.0)])
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    cuts = np.append(np.arange(0, size, BLOCK), size).astype(float)
    sums_at_cuts = np.interp(cuts, ends, sums)
    sums_at_cuts[0], sums_at_cuts[-1] = 0.0, sums[-1]  # so that tokens without bytes count at both ends of the text
    return np.diff(sums_at_cuts), np.diff(cuts)


def _read_texts(options: CompareOptions) -> list[str]:
    files = read_topics(TextModelingConfig(path=str(options.text), max_bytes=options.max_bytes), "--text")
    for line in passed_over_lines("--text", files.passed):
        options.reporter.say(line)
    return _first_bytes(options.max_bytes, (text for texts in files.topics.values() for text in texts))


def _common_texts(runs: Sequence[str], options: CompareOptions) -> list[str]:
    """Return the whole texts that all ``runs`` hold out, in the order of the first run."""
    held_out: list[dict[str, None]] = []
    for run in runs:
        trained = load_trained(run, options.checkpoint)
        held_out.append(dict.fromkeys(_held_out_texts(own_data(trained, options.reporter), trained.tokenizer)))
    common = [text for text in held_out[0] if text and all(text in other for other in held_out[1:])]
    if not common:
        raise UserError(
            "compare: the runs hold out different samples and no document together; give text that none of them was "
            "trained on (--text PATH)"
        )
    return _first_bytes(options.max_bytes, common)


def _held_out_texts(prepared: Prepared, tokenizer: Tokenizer) -> Iterable[str]:
    if prepared.validation is None or not tokenizer.lossless:
        return
    for _, document in held_out_documents(prepared.validation, tokenizer):
        if document.whole:
            yield tokenizer.decode(document.ids)


def _first_bytes(size: int, texts: Iterable[str]) -> list[str]:
    """Return the first of ``texts`` with at most ``size`` bytes together, and at least one text."""
    first: list[str] = []
    for text in texts:
        size -= len(text.encode("utf-8"))
        if size < 0 and first:
            break
        first.append(text)
    return first
