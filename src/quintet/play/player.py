"""The logic of the page without its widgets: pieces to choose from, and a model's answer as picture, sound and MIDI."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from quintet.config.generation import GenerationSettings
from quintet.data.note_samples import MusicPieces, NoteSamples, tasks_of
from quintet.data.prepare import find_prepared
from quintet.errors import UserError
from quintet.evaluate.language_model import LanguageModel
from quintet.evaluate.music import Answer, answer
from quintet.piano.context import COMPOSERS, DATASETS, surname, words_in
from quintet.piano.metrics import compare
from quintet.piano.midi import faults_line, midi_bytes, read_midi
from quintet.piano.notes import Notes
from quintet.piano.rendering import piano_roll, render
from quintet.piano.tasks import DEFAULT_TASKS, Task, task_named
from quintet.piano.tokenizers.base import note_tokenizer
from quintet.randomness import key
from quintet.train.trained import TrainedRun, load_writer

GO_ON = "go on"
"""The choice of a continuation instead of a task."""
_HELD_OUT = 12  # pieces to choose from

COMPOSER_NAMES = tuple(surname(token) for token in COMPOSERS)
DATASET_NAMES = tuple(token[1:-1] for token in DATASETS)


@dataclass(frozen=True)
class MusicPiece:
    """A named piece of music. ``about`` has its data set and composer, for `context_tokens`; ``passed_over`` describes
    what was dropped from its file."""

    name: str
    notes: Notes
    about: Mapping[str, Any]
    passed_over: str = ""

    def part(self, begin: float, end: float) -> Notes:
        """Return the notes that start from ``begin`` to before ``end``, in seconds, moved so that the first starts at
        0."""
        chosen = self.notes[(self.notes.start >= begin) & (self.notes.start < end)]
        return chosen.moved(-float(chosen.start[0])) if len(chosen) else chosen


@dataclass(frozen=True)
class Played:
    """The result: a sentence, a picture (PNG), a sound (WAV), and MIDI files of the whole piece and of the answer.

    In the whole piece, the model's prompt starts after ``begin`` seconds. ``scores`` are the metrics between the answer
    and the hidden notes, or None if nothing was hidden or the model did not read all other notes.
    """

    title: str
    sentence: str
    roll: bytes
    sound: bytes
    midi: bytes
    answer: bytes
    begin: float
    scores: Mapping[str, float] | None


@dataclass(frozen=True)
class Player:
    """A model of piano music, the tasks that it was trained on, and pieces that were held out."""

    trained: LanguageModel
    tasks: tuple[Task, ...]
    held_out: tuple[MusicPiece, ...]
    # Several browsers share the model, but only one at a time can use it and the threads of torch.
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def choices(self) -> list[str]:
        """The choices: a continuation, and the model's tasks, or the default tasks if it was trained on none."""
        return [GO_ON, *(task.name for task in self.tasks or DEFAULT_TASKS)]

    def play(
        self,
        title: str,
        notes: Notes,
        choice: str,
        settings: GenerationSettings,
        about: Mapping[str, Any],
        hide: bool = False,
    ) -> Played:
        """Return the model's continuation of ``notes``, or its answer to the task that ``choice`` names.

        With ``hide``, ``notes`` are a whole piece, from which the notes that the task asks for are removed first;
        random choices depend on the seed of ``settings``. Raises UserError for an unknown task, and if there is nothing
        to continue or to hide.
        """
        if not len(notes):
            raise UserError("no note starts in the chosen part; choose a longer one")
        task = None if choice == GO_ON else task_named(choice)
        prompt, target = notes, None
        if task is not None and hide:
            prompt, target = task.split(notes, np.random.default_rng(key(settings.seed, "play")))
            _check_split(task, prompt, target)
        with self._turn:
            found = answer(self.trained, prompt, settings, task, about)
        return Played(
            f"{title} · {choice}",
            _sentence(found, prompt, target is not None, self.trained.model.context_length),
            piano_roll(*found.from_start()),
            render(found.whole),
            midi_bytes(found.whole),
            midi_bytes(found.notes),
            found.begin,
            compare(found.notes, target) if target is not None and len(found.heard) == len(prompt) else None,
        )


@cache
def player(run: str, checkpoint: str) -> Player:
    """Load the model of ``run`` for a page, once per process.

    Raises UserError as `load_writer` does, and for a model of text.
    """
    trained = load_writer(run, checkpoint, weights="narrow")
    try:
        note_tokenizer(trained.tokenizer)
    except UserError:
        raise UserError(f"{run}: writes text and no music; use quintet generate or quintet chat") from None
    if not isinstance(trained, TrainedRun):
        return Player(trained, (), ())
    return Player(trained, tasks_of(trained.config.data.packing), _held_out(trained))


def uploaded(name: str, data: bytes) -> MusicPiece:
    """Return the piece in an uploaded file, with the composer in the file's name, as for a folder of MIDI files.

    Raises UserError, with the file's name, if it is no MIDI file or has no notes.
    """
    faults: Counter[str] = Counter()
    notes = read_midi(data, faults=faults, name=name)
    if not len(notes):
        raise UserError(f"{name}: has no notes; choose a file in which something is played")
    return MusicPiece(name, notes.moved(-float(notes.start[0])), {"composer": words_in(name)}, faults_line(faults))


def _held_out(run: TrainedRun) -> tuple[MusicPiece, ...]:
    """Return some pieces, spread evenly over the run's validation set; none if its data no longer exist."""
    prepared = find_prepared(run.config)
    if prepared is None or prepared.validation is None:
        return ()
    candidates: list[tuple[MusicPieces, int]] = []
    for stream in prepared.validation.source_samples:
        if isinstance(stream, NoteSamples):
            candidates += [(stream.pieces, index) for index in range(len(stream.pieces.counts))]
    chosen: list[MusicPiece] = []
    for number in range(min(_HELD_OUT, len(candidates))):
        pieces, index = candidates[number * len(candidates) // min(_HELD_OUT, len(candidates))]
        notes = pieces.read(index, 0, int(pieces.counts[index]))
        dataset, composer = pieces.context(index)
        about = {"dataset": dataset[1:-1], "composer": surname(composer)}
        name = f"held out {number + 1}: {about['composer']}, {len(notes)} notes, {notes.seconds:.0f} s"
        chosen.append(MusicPiece(name, notes, about))
    return tuple(chosen)


def _check_split(task: Task, prompt: Notes, target: Notes) -> None:
    if not len(target):
        raise UserError(f"{task.name}: the chosen part has no such notes to hide; choose another part or task")
    if not len(prompt):
        raise UserError(f"{task.name}: takes all notes of the chosen part; choose a longer part")


def _sentence(found: Answer, prompt: Notes, compares: bool, context: int) -> str:
    rest = "" if len(found.notes) else " It ended at once; try another seed, or a higher temperature."
    if len(found.heard) == len(prompt):
        return f"The model was given {len(prompt)} notes and wrote {len(found.notes)}.{rest}"
    rest += " Choose a shorter part to compare them with the hidden ones." if compares else ""
    return (
        f"The model was given the last {len(found.heard)} of {len(prompt)} notes, as its context of {context} tokens "
        f"has no room for more beside the answer, and wrote {len(found.notes)}.{rest}"
    )
