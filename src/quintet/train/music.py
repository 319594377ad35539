"""Music that a model writes: what comes after a piece, or the answer to a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintet.errors import UserError
from quintet.model.generate import GenerationSettings, generate
from quintet.piano.context import ANSWER, END_OF_ANSWER, context_tokens
from quintet.piano.notes import Notes, joined
from quintet.piano.tasks import Task
from quintet.piano.tokenizers import NoteTokenizer
from quintet.piano.vocabulary import note_tokenizer
from quintet.train.trained import TrainedModel


@dataclass(frozen=True)
class Answer:
    """``heard`` is the part of the prompt that the model was given, ``notes`` what it wrote, in the prompt's time, and
    ``whole`` the piece that both make."""

    heard: Notes
    notes: Notes
    whole: Notes

    @property
    def begin(self) -> float:
        """Seconds of the piece before what the model was given."""
        return float(self.heard.start[0])

    def from_start(self) -> tuple[Notes, Notes]:
        """``heard`` and ``notes`` as a picture shows them: without the silence or the part of the piece before."""
        return self.heard.moved(-self.begin), self.notes.moved(-self.begin)


def answer(
    trained: TrainedModel,
    prompt: Notes,
    settings: GenerationSettings,
    task: Task | None = None,
    about: Mapping[str, Any] | None = None,
) -> Answer:
    """What the model writes for ``prompt``: its answer to ``task``, or what comes after it where there is none.

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
    new = behind(tokenizer, ids, written).moved(begin)
    return Answer(heard, new, joined(prompt, new))


def behind(tokenizer: NoteTokenizer, ids: Sequence[int], written: Sequence[int]) -> Notes:
    """The notes that ``written`` adds to those of ``ids``, in the time of ``ids``."""
    both, before = (tokenizer.decode_notes(np.array(one)) for one in ([*ids, *written], ids))
    # Every event of the prompt is in its ids, so what begins behind its last one is new.
    return both[len(before) :]


def _prompt_ids(
    trained: TrainedModel,
    tokenizer: NoteTokenizer,
    prompt: Notes,
    max_tokens: int,
    task: Task | None,
    about: Mapping[str, Any],
) -> tuple[Notes, list[int]]:
    """The part of ``prompt`` that fits, and its ids with what stands before and behind it."""
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
    trained: TrainedModel, tokenizer: NoteTokenizer, prompts: Sequence[list[int]], settings: GenerationSettings
) -> list[list[int]]:
    """The ids that the model writes behind each of ``prompts``, up to the end of the piece or of the answer."""
    ends = {tokenizer.end_id, tokenizer.special(END_OF_ANSWER)}
    written: list[list[int]] = [[] for _ in prompts]
    with trained.compute.autocast():
        for step in generate(trained.model, prompts, settings, ends, allowed_ids=tokenizer.vocab_size):
            for row, token in enumerate(step):
                if token is not None:
                    written[row].append(token)
    return written
