"""Music that a model writes: the continuation of a piece, or the answer to a task."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.generation import GenerationSettings
from quintet.errors import UserError
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model.generate import generate, tokens_ahead
from quintet.piano.context import (
    ANSWER,
    COMPOSERS,
    DATASETS,
    END_OF_ANSWER,
    UNKNOWN_COMPOSER,
    composer_token,
    context_tokens,
    dataset_token,
    surname,
    words_in,
)
from quintet.piano.midi import faults_line, read_midi, write_midi
from quintet.piano.notes import Notes, joined
from quintet.piano.rendering import piano_roll, render
from quintet.piano.tasks import Task, task_named
from quintet.piano.tokenizers.base import NoteTokenizer, note_tokenizer


@dataclass(frozen=True)
class Answer:
    """The ``notes`` that a model wrote, in the prompt's time, the part of the prompt that it ``heard``, and the
    ``whole`` piece of both. ``asked`` counts the notes of the prompt; ``name`` is that of its file, and ``passed_over``
    says what of the file was passed over. A notebook shows the notes as a picture."""

    heard: Notes
    notes: Notes
    whole: Notes
    asked: int = 0
    name: str = ""
    passed_over: str = ""

    @property
    def begin(self) -> float:
        """Seconds of the piece before the part that the model heard."""
        return float(self.heard.start[0])

    def from_start(self) -> tuple[Notes, Notes]:
        """Return ``heard`` and ``notes`` as a picture shows them, from the first note that the model heard."""
        return self.heard.moved(-self.begin), self.notes.moved(-self.begin)

    def roll(self) -> bytes:
        """Return a picture (PNG) of the notes that the model heard and those that it wrote."""
        return piano_roll(*self.from_start(), self.name)

    _repr_png_ = roll

    def sound(self) -> bytes:
        """Return the sound (WAV) of the whole piece."""
        return render(self.whole)

    def save(self, file: str | Path) -> Path:
        """Write the whole piece to ``file``: the sound if its name ends with .wav, the picture with .png, else MIDI.

        Raises UserError if the folder does not exist.
        """
        path = Path(file)
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: cannot be written, for there is no folder {path.parent}; make it first")
        match path.suffix.lower():
            case ".png":
                path.write_bytes(self.roll())
            case ".wav":
                path.write_bytes(self.sound())
            case _:
                write_midi(self.whole, path)
        return path


def answer_piece(
    trained: ModelAndTokenizer,
    piece: str | Path | Notes,
    settings: GenerationSettings,
    task: str | None = None,
    composer: str | None = None,
    dataset: str | None = None,
) -> Answer:
    """Return the `answer` of the model to ``piece``, a MIDI file or notes.

    Without a ``composer`` the one in the file's name is used, as in training. Raises UserError for a task, composer or
    data set that no model knows.
    """
    name, faults = "", Counter[str]()
    if not isinstance(piece, Notes):
        name, piece = Path(piece).name, read_midi(Path(piece), faults=faults)
    piano_task = None if task is None else task_named(task, "task")
    unknown = surname(UNKNOWN_COMPOSER).lower()
    if composer_token({"composer": composer}) == UNKNOWN_COMPOSER and (composer or unknown).lower() != unknown:
        raise UserError(f"composer: no model knows {composer}; choose one of {', '.join(map(surname, COMPOSERS))}")
    if dataset and dataset_token({"dataset": dataset})[1:-1] != dataset.upper():
        names = ", ".join(token[1:-1] for token in DATASETS)
        raise UserError(f"dataset: no model knows {dataset}; choose one of {names}")
    about = {"composer": composer or words_in(name), "dataset": dataset}
    written = answer(trained, piece, settings, piano_task, about)
    return replace(written, asked=len(piece), name=name, passed_over=faults_line(faults) if faults else "")


def answer(
    trained: ModelAndTokenizer,
    prompt: Notes,
    settings: GenerationSettings,
    task: Task | None = None,
    about: Mapping[str, Any] | None = None,
) -> Answer:
    """Return the answer of the model to ``task`` for ``prompt``, or without a task the continuation of ``prompt``.

    ``about`` names data set and composer. The model hears the end of the prompt that leaves room for
    ``settings.max_tokens`` in its context, or that fills half the context if this is more. Raises UserError for a
    prompt without notes.
    """
    if not len(prompt):
        raise UserError("--midi: the file has no notes to go on from")
    tokenizer = note_tokenizer(trained.tokenizer)
    heard, ids = _prompt_ids(trained, tokenizer, prompt, settings.max_tokens, task, about or {})
    begin = float(heard.start[0])
    written = write(trained, tokenizer, [ids], settings)[0]
    if task is not None:
        notes = tokenizer.decode_notes(np.array(written)).moved(begin)
        return Answer(heard, notes, task.whole(prompt, notes))
    notes = notes_after(tokenizer, ids, written).moved(begin)
    return Answer(heard, notes, joined(prompt, notes))


def notes_after(tokenizer: NoteTokenizer, ids: Sequence[int], written: Sequence[int]) -> Notes:
    """Return the notes that ``written`` adds to those of ``ids``, in the time of ``ids``."""
    before = tokenizer.decode_notes(np.array(ids))
    # The ids hold every event of the prompt, so that all notes which start after its last event are new.
    return tokenizer.decode_notes(np.array([*ids, *written]))[len(before) :]


def _prompt_ids(
    trained: ModelAndTokenizer,
    tokenizer: NoteTokenizer,
    prompt: Notes,
    max_tokens: int,
    task: Task | None,
    about: Mapping[str, Any],
) -> tuple[Notes, list[int]]:
    """Return the end of ``prompt`` that fits, and its ids between those of context and task."""
    context = trained.model.context_length
    room = max(context // 2, context - max_tokens)
    before = [*context_tokens(about), *(task.tokens if task is not None else ())]
    closing = [ANSWER] if task is not None else []
    specials = [[tokenizer.special(name) for name in names] for names in (before, closing)]
    heard = prompt
    while True:
        ids = tokenizer.encode_notes(heard.moved(-float(heard.start[0]))).tolist()
        size = len(ids) + len(before) + len(closing)
        if size <= room or len(heard) == 1:
            return heard, [*specials[0], *ids, *specials[1]]
        heard = heard[-max(1, min(len(heard) - 1, len(heard) * room // size)) :]


def write(
    trained: ModelAndTokenizer, tokenizer: NoteTokenizer, prompts: Sequence[list[int]], settings: GenerationSettings
) -> list[list[int]]:
    """Return the ids that the model writes after each of ``prompts``, up to the end of the piece or of the answer."""
    ends = {tokenizer.end_id, tokenizer.special(END_OF_ANSWER)}
    written: list[list[int]] = [[] for _ in prompts]
    ahead = tokens_ahead(trained.compute.device)
    with trained.compute.autocast():
        for step in generate(trained.model, prompts, settings, ends, allowed_ids=tokenizer.vocab_size, ahead=ahead):
            for row, token in enumerate(step):
                if token is not None:
                    written[row].append(token)
    return written
