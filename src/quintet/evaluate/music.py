"""Music that a model writes: what comes after a piece, or the answer to a task."""

from __future__ import annotations

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
    """``heard`` is the part of the prompt that the model was given, ``notes`` what it wrote, in the prompt's time, and
    ``whole`` the piece that both make. The prompt has ``asked`` notes; ``name`` is that of its file, and
    ``passed_over`` says what of it was passed over. A notebook shows the notes as a picture."""

    heard: Notes
    notes: Notes
    whole: Notes
    asked: int = 0
    name: str = ""
    passed_over: str = ""

    @property
    def begin(self) -> float:
        """Seconds of the piece before what the model was given."""
        return float(self.heard.start[0])

    def from_start(self) -> tuple[Notes, Notes]:
        """``heard`` and ``notes`` as a picture shows them: without the silence or the part of the piece before."""
        return self.heard.moved(-self.begin), self.notes.moved(-self.begin)

    def roll(self) -> bytes:
        """The notes as a picture (PNG): what the model was given and what it wrote."""
        return piano_roll(*self.from_start(), self.name)

    _repr_png_ = roll

    def sound(self) -> bytes:
        """The whole piece as a sound (WAV)."""
        return render(self.whole)

    def save(self, file: str | Path) -> Path:
        """Write the whole piece to ``file``: MIDI, or for a name with .wav the sound, with .png the picture.

        Raises UserError for a folder that does not exist.
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
    """Return what the model writes for ``piece``, a MIDI file or notes, as `answer` does.

    The composer is the one in the file's name if none is given, as for training. Raises UserError for names of a task,
    composer or data set that no model knows.
    """
    name, faults = "", Counter[str]()
    if not isinstance(piece, Notes):
        name, piece = Path(piece).name, read_midi(Path(piece), faults=faults)
    asked = None if task is None else task_named(task, "task")
    nobody = surname(UNKNOWN_COMPOSER)
    named = composer or nobody
    if composer_token({"composer": composer}) == UNKNOWN_COMPOSER and named.lower() != nobody.lower():
        raise UserError(f"composer: no model knows {composer}; choose one of {', '.join(map(surname, COMPOSERS))}")
    if dataset and dataset_token({"dataset": dataset})[1:-1] != dataset.upper():
        names = ", ".join(one[1:-1] for one in DATASETS)
        raise UserError(f"dataset: no model knows {dataset}; choose one of {names}")
    about = {"composer": composer or words_in(name), "dataset": dataset}
    found = answer(trained, piece, settings, asked, about)
    return replace(found, asked=len(piece), name=name, passed_over=faults_line(faults) if faults else "")


def answer(
    trained: ModelAndTokenizer,
    prompt: Notes,
    settings: GenerationSettings,
    task: Task | None = None,
    about: Mapping[str, Any] | None = None,
) -> Answer:
    """Return what the model writes for ``prompt``: its answer to ``task``, or what comes after it where there is none.

    ``about`` says data set and composer. Of a prompt that leaves no room for ``settings.max_tokens`` in the model's
    context (but at least for half of it) the end is heard. Raises UserError for a prompt without notes.
    """
    if not len(prompt):
        raise UserError("--midi: the file has no notes to go on from")
    tokenizer = note_tokenizer(trained.tokenizer)
    heard, ids = _prompt_ids(trained, tokenizer, prompt, settings.max_tokens, task, about or {})
    begin = float(heard.start[0])
    written = write(trained, tokenizer, [ids], settings)[0]
    if task is not None:
        found = tokenizer.decode_notes(np.array(written)).moved(begin)
        return Answer(heard, found, task.whole(prompt, found))
    new = notes_after(tokenizer, ids, written).moved(begin)
    return Answer(heard, new, joined(prompt, new))


def notes_after(tokenizer: NoteTokenizer, ids: Sequence[int], written: Sequence[int]) -> Notes:
    """The notes that ``written`` adds to those of ``ids``, in the time of ``ids``."""
    both, before = (tokenizer.decode_notes(np.array(one)) for one in ([*ids, *written], ids))
    # Every event of the prompt is in its ids, so what begins after its last one is new.
    return both[len(before) :]


def _prompt_ids(
    trained: ModelAndTokenizer,
    tokenizer: NoteTokenizer,
    prompt: Notes,
    max_tokens: int,
    task: Task | None,
    about: Mapping[str, Any],
) -> tuple[Notes, list[int]]:
    """The part of ``prompt`` that fits, and its ids with what stands before and after it."""
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
