"""The accuracy of a music model's answers, compared with baselines that need no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintet.config.documents import IGNORED
from quintet.config.generation import GenerationSettings
from quintet.config.packing import MusicPackingConfig
from quintet.data.batch import ValidationData
from quintet.data.note_samples import NoteSamples
from quintet.data.prepare import Prepared
from quintet.data.samples import LeftOut, Sample
from quintet.errors import UserError
from quintet.evaluate.music import write
from quintet.piano.baselines import bigram, copied, nats_per_token, unigram
from quintet.piano.context import ANSWER
from quintet.piano.metrics import compare, mean
from quintet.piano.notes import Notes
from quintet.piano.tasks import Task
from quintet.randomness import key
from quintet.train.trained import TrainedRun
from quintet.train.validation import ValidationResult, validate

_BATCH = 16
_COUNTED = 4096  # samples in which the baselines count tokens


@dataclass(frozen=True)
class MusicResult:
    """Metrics of the model's answers and of copies of the prompt (see `quintet.piano.baselines`).

    ``tasks`` has the metrics by task and then by "model" or "copy", over ``records``. "loss" of the model is that of
    the true answer, in nats per token. ``nats`` are the nats per token of unigram and bigram counts on the validation
    tokens.
    """

    tasks: dict[str, dict[str, dict[str, float]]]
    records: int
    nats: dict[str, float]

    def mean(self, side: str, metric: str) -> float:
        """Return the mean of a metric over the tasks."""
        return mean({metric: sides[side][metric]} for sides in self.tasks.values()).get(metric, math.nan)

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        lines = [f"counts of tokens: unigram {self.nats['unigram']:.4f}, bigram {self.nats['bigram']:.4f} nats a token"]
        if not self.tasks:
            return lines
        width = max(map(len, self.tasks))
        rows = {**self.tasks, "mean": self._means()}
        lines.append(f"{self.records} records; in brackets copies of the prompt")
        for name, sides in rows.items():
            model, copy = sides["model"], sides["copy"]
            lines.append(
                f"  {name:{width}}  loss {model['loss']:.4f}, note F1 {model['note_f1']:.3f} ({copy['note_f1']:.3f}), "
                f"sounding F1 {model['sounding_f1']:.3f} ({copy['sounding_f1']:.3f})"
            )
        return lines

    def figures(self) -> dict[str, Any]:
        """Return all figures for JSON, with None for NaN, which JSON lacks."""
        tasks = {
            name: {
                side: {metric: _known(value) for metric, value in metrics.items()} for side, metrics in sides.items()
            }
            for name, sides in self.tasks.items()
        }
        return {
            "records": self.records,
            "nats": {name: _known(value) for name, value in self.nats.items()},
            "tasks": tasks,
        }

    def _means(self) -> dict[str, dict[str, float]]:
        sides = {side: metrics for sides in self.tasks.values() for side, metrics in sides.items()}
        return {side: {metric: self.mean(side, metric) for metric in sides[side]} for side in sides}


def is_music(run: TrainedRun) -> bool:
    """Return True if ``run`` was trained on notes."""
    return isinstance(run.config.data.packing, MusicPackingConfig)


def evaluate_music(
    run: TrainedRun, prepared: Prepared, samples: int | None, records: int, settings: GenerationSettings
) -> MusicResult:
    """Compare the model's answers with the truth, on ``records`` held-out records spread evenly over tasks and pieces.

    The token counts are tested on ``samples`` held-out samples, those of `loss_on`. Raises UserError if nothing is held
    out.
    """
    streams = prepared.validation.source_samples if prepared.validation else ()
    held = [stream for stream in streams if isinstance(stream, NoteSamples)]
    if prepared.validation is None or not any(stream.count for stream in held):
        raise UserError(f"{run.folder}: holds no music out; set data.validation or data.validation_sources")
    widest = max(held, key=lambda stream: stream.count)
    counts = _nats(prepared, prepared.validation, samples, widest.tokenizer.vocab_size)
    if not widest.tasks:
        return MusicResult({}, 0, counts)
    each = min(max(1, records // len(widest.tasks)), widest.count // len(widest.tasks))
    by_task = [_TaskSamples(widest, task) for task in range(len(widest.tasks))]
    asked = [_Record.of(stream, index) for stream in by_task for index in _spread(stream.count, each)]
    results = _compared(run, widest, asked, settings)
    labels = tuple(task.name for task in widest.tasks)
    data = ValidationData(tuple(by_task), labels, widest.sequence_length)
    losses = _losses(run, data, len(asked))
    tasks = {name: {side: mean(metrics) for side, metrics in sides.items()} for name, sides in results.items()}
    for name, sides in tasks.items():
        sides["model"] = {"loss": losses.of(name).loss, **sides["model"]}
    return MusicResult(tasks, len(asked), counts)


@dataclass(frozen=True)
class _TaskSamples:
    """The samples of one of several tasks."""

    samples: NoteSamples
    task: int

    @property
    def tokens(self) -> int:
        return self.samples.tokens

    @property
    def count(self) -> int:
        return self.samples.count // len(self.samples.tasks)

    @property
    def left_out(self) -> LeftOut:
        return self.samples.left_out

    def sample(self, index: int) -> Sample:
        return self.samples.sample(index * len(self.samples.tasks) + self.task)


@dataclass(frozen=True)
class _Record:
    """A held-out record: its task, its prompt as ids and as notes (``asked``), and the true answer."""

    task: Task
    prompt: list[int]
    asked: Notes
    target: Notes

    @classmethod
    def of(cls, stream: _TaskSamples, index: int) -> _Record:
        tokenizer, ids = stream.samples.tokenizer, stream.sample(index).ids
        at = int(np.flatnonzero(ids == tokenizer.special(ANSWER))[0]) + 1
        task = stream.samples.tasks[stream.task]
        return cls(task, ids[:at].tolist(), tokenizer.decode_notes(ids[:at]), tokenizer.decode_notes(ids[at:]))


def _compared(
    run: TrainedRun, samples: NoteSamples, asked: list[_Record], settings: GenerationSettings
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return the metrics of each answer and each copy, by task.

    An answer has at most the length of a training sample.
    """
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    size = samples.sequence_length + 1
    for first in range(0, len(asked), _BATCH):
        group = asked[first : first + _BATCH]
        rooms = [size - len(record.prompt) for record in group]
        seed = key(settings.seed, "music", first)
        chosen = settings.model_copy(update={"seed": seed, "max_tokens": max(rooms)})
        written = write(run, samples.tokenizer, [record.prompt for record in group], chosen)
        for record, room, ids in zip(group, rooms, written, strict=True):
            sides = results.setdefault(record.task.name, {"model": [], "copy": []})
            sides["model"].append(compare(samples.tokenizer.decode_notes(np.array(ids[:room])), record.target))
            sides["copy"].append(compare(copied(record.task, record.asked, len(record.target)), record.target))
    return results


def _losses(run: TrainedRun, data: ValidationData, records: int) -> ValidationResult:
    """Return the loss on ``records`` records, by task."""
    batches = data.batches(run.config.validation_batch_size, records)
    zero = run.tokenizer.bytes_per_token()
    return validate(run.model, run.objective, batches, run.compute, bytes_per_token=zero, labels=data.labels)


def _nats(prepared: Prepared, held: ValidationData, samples: int | None, vocabulary: int) -> dict[str, float]:
    """Return nats per token of unigram and bigram counts of training samples, on the held-out targets."""
    train = [stream for stream in prepared.train.source_samples if isinstance(stream, NoteSamples) and stream.count]
    each = max(1, _COUNTED // len(train))
    seen = [
        _counted_ids(stream.sample(index))
        for stream in train
        for index in _spread(stream.count, min(each, stream.count))
    ]
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for batch in held.batches(_BATCH, samples):
        known = batch.targets != IGNORED
        # The last token of a sample is only a target, and the tokens of a prompt are only inputs.
        following = np.where(known, batch.targets, np.roll(batch.inputs, -1, axis=1))
        ids += list(np.concatenate([batch.inputs[:, :1], following], axis=1).astype(np.int64, copy=False))
        masks += list(known)
    return {
        "unigram": nats_per_token(unigram((tokens[1:] for tokens in seen), vocabulary), ids, masks),
        "bigram": nats_per_token(bigram(seen, vocabulary), ids, masks),
    }


def _counted_ids(sample: Sample) -> np.ndarray:
    """Return the ids of a sample that have a loss, and the id before them: [length], in the sample's dtype."""
    first = 1 if sample.loss_mask is None else int(np.argmax(np.append(sample.loss_mask[1:], True))) + 1
    return sample.ids[first - 1 :]


def _spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` of ``count`` numbers, evenly spread, as `ValidationData` chooses samples."""
    return (np.arange(wanted) * count // wanted).tolist()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
