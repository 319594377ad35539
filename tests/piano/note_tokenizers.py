"""Tokenizers of notes, notes for them, and what two tables of notes have in common."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from quintet.config.tokenizer import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
)
from quintet.piano.notes import Notes, notes
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.piano.tokenizers.bpe import NoteBPETokenizer, train
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer
from quintet.piano.tokenizers.miditok import MidiTokTokenizer

FAMILIES = ["REMI", "TSD", "MIDILike", "Structured", "PerTok"]
COLUMNS = ("pitch", "velocity", "start", "end")
quick = settings(max_examples=60)


def played(rows: Iterable[tuple[float, float, float, float]]) -> Notes:
    """Notes from rows of pitch, velocity, start, end."""
    return notes(*np.array(list(rows), dtype=float).reshape(-1, 4).T)


def performance(seed: int, count: int, keys: int = 40, gap: float = 0.12, length: float = 0.5) -> Notes:
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.exponential(gap, count))
    end = start + 0.02 + draw.exponential(length, count)
    return notes(draw.integers(40, 40 + keys, count), draw.integers(1, 128, count), start, end)


@cache
def exponential(**keys: Any) -> ExponentialTimeTokenizer:
    return ExponentialTimeTokenizer(ExponentialTimeTokenizerConfig(kind="exponential_time", **keys))


@cache
def miditok(family: str) -> MidiTokTokenizer:
    config = MidiTokTokenizerConfig(kind="miditok", family=family, special_tokens=3)  # pyright: ignore
    return MidiTokTokenizer(config)


@cache
def merged() -> NoteBPETokenizer:
    config = NoteBPETokenizerConfig(kind="note_bpe", vocab_size=400)
    return train(config, exponential(special_tokens=3), [performance(seed, 300) for seed in range(5)])


def every_kind() -> list[NoteTokenizer]:
    return [exponential(special_tokens=3), merged(), *(miditok(family) for family in FAMILIES)]


ANY_TIME = st.integers(0, 400).map(lambda half_steps: half_steps * 0.005) | st.floats(0, 20)
ANY_NOTE = st.tuples(st.sampled_from([21, 60, 61, 108]), st.integers(1, 127), ANY_TIME, ANY_TIME)
ANY_NOTES = st.lists(ANY_NOTE, max_size=25).map(
    lambda rows: played((pitch, loud, a, a + length + 1e-4) for pitch, loud, a, length in rows)
)


@st.composite
def pianistic(draw: st.DrawFn, pause: float = 0.05, longest: float = 30.0) -> Notes:
    """Notes of which no pitch is struck while it sounds, nor within ``pause`` seconds."""
    rows = []
    for pitch in draw(st.lists(st.integers(21, 108), unique=True, max_size=4)):
        now = 0.0
        for _ in range(draw(st.integers(1, 4))):
            now += draw(st.floats(pause, 3))
            length = draw(st.floats(1e-4, 1.0) | st.floats(1.0, longest))
            rows.append((pitch, draw(st.integers(1, 127)), now, now + length))
            now += length
    return played(rows)


def by_key(table: Notes) -> dict[str, np.ndarray]:
    """Columns of the notes, each pitch after the other, in the order of their starts."""
    order = np.lexsort((table.start, table.pitch))
    return {name: getattr(table, name)[order] for name in COLUMNS}


def same(one: Notes, other: Notes) -> bool:
    return all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-9) for name in COLUMNS) and (
        len(one) == len(other)
    )
