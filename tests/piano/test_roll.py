"""Pictures, read back as pixels and as the bars that were drawn."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from quintet.errors import UserError
from quintet.piano.notes import notes
from quintet.piano.roll import ANSWER, PROMPT, piano_roll, pitch_name, roll_figure

PROMPTED = notes(*np.array([(60, 127, 0, 1), (64, 127, 1, 2)], dtype=float).T)
ANSWERED = notes(*np.array([(67, 127, 2, 4)], dtype=float).T)


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(int)


def count(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=-1) <= 2).sum())


def test_both_colours_are_seen_in_proportion_to_what_sounds() -> None:
    alone, both = pixels(piano_roll(PROMPTED)), pixels(piano_roll(PROMPTED, ANSWERED))
    assert count(alone, PROMPT) > 1000
    assert count(alone, ANSWER) == 0
    assert 0.8 < count(both, PROMPT) / count(both, ANSWER) < 1.25  # two seconds of each


def test_a_bar_is_a_note() -> None:
    figure = roll_figure(PROMPTED, ANSWERED, title="A title")
    (axes,) = figure.axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches]
    assert bars == [(0, 1, 60), (1, 2, 64), (2, 4, 67)]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["prompt", "answer"]
    assert len({patch.get_facecolor() for patch in legend.get_patches()}) == 2
    assert "C4" in [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_xlabel() == "seconds"


def test_names_of_pitches() -> None:
    assert [pitch_name(pitch) for pitch in (21, 60, 61, 69, 108)] == ["A0", "C4", "C♯4", "A4", "C8"]


def test_nothing_is_a_picture_too() -> None:
    assert pixels(piano_roll(PROMPTED[:0], ANSWERED[:0])).shape == (400, 1200, 3)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[piano\]'"):
        piano_roll(PROMPTED)
