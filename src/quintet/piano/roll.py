"""A picture of notes: time to the right, pitch upwards."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from quintet.errors import printable
from quintet.libraries import require
from quintet.piano.notes import Notes

PROMPT, ANSWER = "#3465a4", "#e8770a"
"""The colours of the two, told apart with any colour vision."""
_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_MARGIN = 2  # semitones above and below what is played
_NAMED = 16  # up to this many semitones, every key has its name; above it, every C


def pitch_name(pitch: int) -> str:
    """The name of a MIDI pitch: 60 is C4."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def piano_roll(prompt: Notes, answer: Notes | None = None, title: str = "") -> bytes:
    """A PNG of the notes, the louder the darker; with an ``answer``, both have a colour of their own and a legend."""
    figure = roll_figure(prompt, answer, title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def roll_figure(prompt: Notes, answer: Notes | None = None, title: str = "") -> Any:
    """The same as a matplotlib Figure, 12 inches wide."""
    drawing: Any = require("matplotlib.figure", "piano", "a piano roll")
    patches: Any = require("matplotlib.patches", "piano", "a piano roll")
    figure = drawing.Figure(figsize=(12, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, prompt, PROMPT)
    if answer is not None:
        _draw(axes, answer, ANSWER)
        keys = [patches.Patch(color=PROMPT, label="prompt"), patches.Patch(color=ANSWER, label="answer")]
        figure.legend(handles=keys, loc="outside upper right", ncols=2)
    tables = [prompt] if answer is None else [prompt, answer]
    pitches = np.concatenate([table.pitch for table in tables])
    low, high = (int(pitches.min()), int(pitches.max())) if len(pitches) else (60, 72)
    axes.set_ylim(low - _MARGIN, high + _MARGIN)
    axes.set_xlim(0, max(table.seconds for table in tables) or 1.0)
    named = [pitch for pitch in range(low - 1, high + 2) if high - low <= _NAMED or pitch % 12 == 0]
    axes.set_yticks(named, [pitch_name(pitch) for pitch in named])
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds")
    axes.set_title(printable(title), parse_math=False)
    return figure


def _draw(axes: Any, table: Notes, colour: str) -> None:
    """A bar a note, one semitone high."""
    spelled: Any = require("matplotlib.colors", "piano", "a piano roll")

    colours = np.tile(spelled.to_rgba(colour), (len(table), 1))
    colours[:, 3] = 0.35 + 0.65 * table.velocity / 127
    axes.barh(table.pitch, table.end - table.start, left=table.start, height=0.8, color=colours)
