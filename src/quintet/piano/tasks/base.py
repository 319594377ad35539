"""A task: how a piece is split into what a model is given and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quintet.piano.notes import Notes, joined
from quintet.piano.tasks.kinds import KINDS


@dataclass(frozen=True)
class Task:
    """A kind of task with its parameter, such as the two top lines. Make one with `task_named`.

    ``unit`` and ``value`` are the name and the value of the parameter, "" and 0 for a kind that has none.
    """

    kind: str
    unit: str = ""
    value: int = 0

    @property
    def name(self) -> str:
        """The name for `task_named`: ``top_line_masking-x2``; a percentage has its sign where a count is possible."""
        if not self.unit:
            return self.kind
        sign = "%" if self.unit == "mask_percentage" and len(KINDS[self.kind].units) > 1 else ""
        return f"{self.kind}-x{self.value}{sign}"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that tell a model the task, in their order before the prompt."""
        kind = KINDS[self.kind]
        return (*kind.tokens, parameter_token(self.value)) if kind.tells else kind.tokens

    @property
    def replaces(self) -> bool:
        """True if the answer stands for the whole piece; else prompt and answer together are the piece."""
        return KINDS[self.kind].alter is not None

    def split(self, notes: Notes, random: np.random.Generator) -> tuple[Notes, Notes]:
        """Prompt and target of ``notes``; a function of ``notes`` and the state of ``random`` alone.

        Every note is in exactly one of the two, which may be empty; where the task ``replaces``, the prompt has all
        notes altered, and the target is ``notes``.
        """
        kind = KINDS[self.kind]
        if len(notes) == 0:
            return notes, notes
        if kind.alter is not None:
            return kind.alter(notes, random), notes
        assert kind.mask is not None
        target = kind.mask(notes, self.unit, self.value, random)
        return notes[~target], notes[target]

    def whole(self, prompt: Notes, answer: Notes) -> Notes:
        """The piece that a prompt and an answer to it make."""
        return answer if self.replaces else joined(prompt, answer)


def parameter_token(value: int) -> str:
    """The token of a parameter, which tasks share."""
    return f"<PARAMETER_{value}>"
