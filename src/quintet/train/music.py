"""The distance of a model's music from the truth, beside baselines that need no model."""

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
_COUNTED = 4096  # samples that the baselines count their tokens in


@dataclass(frozen=True)
class MusicResult:
    """The metrics of the model's answers and of copies of the prompt (see `quintet.piano.baselines`).

    ``tasks`` has them by task, then "model" or "copy", over ``records``; the model's "loss" is that of the true answer,
    in nats a token. ``nats`` are those a token of unigram and bigram counts, over the tokens of the validation loss.
    """

    tasks: dict[str, dict[str, dict[str, float]]]
    records: int
    nats: dict[str, float]

    def mean(self, side: str, metric: str) -> float:
        """The mean of a metric over the tasks."""
        return mean({metric: sides[side][metric]} for sides in self.tasks.values()).get(metric, math.nan)

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        found = [f"counts of tokens: unigram {self.nats['unigram']:.4f}, bigram {self.nats['bigram']:.4f} nats a token"]
        if not self.tasks:
            return found
        width = max(map(len, self.tasks))
        rows = {**self.tasks, "mean": self._means()}
        found.append(f"{self.records} records; in brackets copies of the prompt")
        for name, sides in rows.items():
            model, copy = sides["model"], sides["copy"]
            found.append(
                f"  {name:{width}}  loss {model['loss']:.4f}, note F1 {model['note_f1']:.3f} ({copy['note_f1']:.3f}), "
                f"sounding F1 {model['sounding_f1']:.3f} ({copy['sounding_f1']:.3f})"
            )
        return found

    def figures(self) -> dict[str, Any]:
        """All figures for JSON, with null for NaN, which JSON lacks."""
        tasks = {
            name: {side: {metric: _known(value) for metric, value in one.items()} for side, one in sides.items()}
            for name, sides in self.tasks.items()
        }
        return {"records": self.records, "nats": {name: _known(one) for name, one in self.nats.items()}, "tasks": tasks}

    def _means(self) -> dict[str, dict[str, float]]:
        sides = {side: one for sides in self.tasks.values() for side, one in sides.items()}
        return {side: {metric: self.mean(side, metric) for metric in sides[side]} for side in sides}


def is_music(run: TrainedRun) -> bool:
    """True if ``run`` learnt from notes."""
    return isinstance(run.config.data.packing, MusicPackingConfig)


def evaluate_music(
    run: TrainedRun, prepared: Prepared, samples: int | None, records: int, settings: GenerationSettings
) -> MusicResult:
    """Let the model answer about ``records`` held-out records, spread evenly over tasks and pieces, and compare.

    The counts are tested on ``samples`` held-out samples, those of `loss_on`. Raises UserError when nothing is
    held out.
    """
    held = [
        one
        for one in (prepared.validation.source_samples if prepared.validation else ())
        if isinstance(one, NoteSamples)
    ]
    if prepared.validation is None or not any(one.count for one in held):
        raise UserError(f"{run.folder}: holds no music out; set data.validation or data.validation_sources")
    widest = max(held, key=lambda one: one.count)
    counts = _nats(prepared, prepared.validation, samples, widest.tokenizer.vocab_size)
    if not widest.tasks:
        return MusicResult({}, 0, counts)
    each = min(max(1, records // len(widest.tasks)), widest.count // len(widest.tasks))
    streams = [_OfTask(widest, task) for task in range(len(widest.tasks))]
    asked = [_Record.of(stream, index) for stream in streams for index in stream.spread(each)]
    results = _compared(run, widest, asked, settings)
    labels = tuple(task.name for task in widest.tasks)
    data = ValidationData(tuple(streams), labels, widest.sequence_length)
    losses = _losses(run, data, len(asked))
    tasks = {name: {side: mean(found) for side, found in sides.items()} for name, sides in results.items()}
    for name, sides in tasks.items():
        sides["model"] = {"loss": losses.of(name).loss, **sides["model"]}
    return MusicResult(tasks, len(asked), counts)


@dataclass(frozen=True)
class _OfTask:
    """The samples of one task among those of several."""

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

    def spread(self, wanted: int) -> list[int]:
        """Numbers of samples, as `ValidationData` chooses them."""
        return (np.arange(wanted) * self.count // wanted).tolist()


@dataclass(frozen=True)
class _Record:
    """A held-out record: its task, its prompt as ids and as notes, and the true answer."""

    task: Task
    prompt: list[int]
    asked: Notes
    target: Notes

    @classmethod
    def of(cls, stream: _OfTask, index: int) -> _Record:
        tokenizer, ids = stream.samples.tokenizer, stream.sample(index).ids
        at = int(np.flatnonzero(ids == tokenizer.special(ANSWER))[0]) + 1
        task = stream.samples.tasks[stream.task]
        return cls(task, ids[:at].tolist(), tokenizer.decode_notes(ids[:at]), tokenizer.decode_notes(ids[at:]))


def _compared(
    run: TrainedRun, samples: NoteSamples, asked: list[_Record], settings: GenerationSettings
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The metrics of every answer and every copy, by task. An answer may be as long as those of the training."""
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    size = samples.sequence_length + 1
    for first in range(0, len(asked), _BATCH):
        group = asked[first : first + _BATCH]
        rooms = [size - len(one.prompt) for one in group]
        seed = key(settings.seed, "music", first)
        chosen = settings.model_copy(update={"seed": seed, "max_tokens": max(rooms)})
        written = write(run, samples.tokenizer, [one.prompt for one in group], chosen)
        for record, room, ids in zip(group, rooms, written, strict=True):
            sides = results.setdefault(record.task.name, {"model": [], "copy": []})
            sides["model"].append(compare(samples.tokenizer.decode_notes(np.array(ids[:room])), record.target))
            sides["copy"].append(compare(copied(record.task, record.asked, len(record.target)), record.target))
    return results


def _losses(run: TrainedRun, data: ValidationData, records: int) -> ValidationResult:
    """The loss on ``records`` records, by task."""
    batches = data.batches(run.config.validation_batch_size, records)
    zero = run.tokenizer.bytes_per_token()
    return validate(run.model, run.objective, batches, run.compute, bytes_per_token=zero, labels=data.labels)


def _nats(prepared: Prepared, held: ValidationData, samples: int | None, vocabulary: int) -> dict[str, float]:
    """Predict the learnt tokens that are held out by counts of those of some training samples: nats per token."""
    train = [one for one in prepared.train.source_samples if isinstance(one, NoteSamples) and one.count]
    seen = [_loss_mask(one.sample(index)) for one in train for index in _spread(one.count, _COUNTED // len(train))]
    ids: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    for batch in held.batches(_BATCH, samples):
        known = batch.targets != IGNORED
        # The last token of a sample is a target only, and those of a prompt are inputs only.
        following = np.where(known, batch.targets, np.roll(batch.inputs, -1, axis=1))
        ids += list(np.concatenate([batch.inputs[:, :1], following], axis=1).astype(np.int64, copy=False))
        marks += list(known)
    return {
        "unigram": nats_per_token(unigram((one[1:] for one in seen), vocabulary), ids, marks),
        "bigram": nats_per_token(bigram(seen, vocabulary), ids, marks),
    }


def _loss_mask(sample: Sample) -> np.ndarray:
    """The ids of a sample that have a loss, and the one before them: integers [length] of the sample's dtype."""
    first = 1 if sample.loss_mask is None else int(np.argmax(np.append(sample.loss_mask[1:], True))) + 1
    return sample.ids[first - 1 :]


def _spread(count: int, wanted: int) -> list[int]:
    wanted = max(1, min(count, wanted))
    return (np.arange(wanted) * count // wanted).tolist()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
