"""Tasks that alter notes instead of taking them away: the prompt is the altered piece, the target the piece itself."""

from __future__ import annotations

import numpy as np

from quintet.piano.notes import HIGHEST, LOWEST, Notes, notes

SHORTEST = 0.01
"""Seconds of the shortest note that noise leaves."""
_STEP = 0.2


def velocity(piece: Notes, random: np.random.Generator) -> Notes:
    """Velocities moved by N(0, 30), kept within 1 to 127."""
    return notes(piece.pitch, _velocities(piece, random), piece.start, piece.end)


def pitch(piece: Notes, random: np.random.Generator) -> Notes:
    """Pitches moved by N(0, 5) semitones, kept on the piano."""
    return notes(_pitches(piece, random), piece.velocity, piece.start, piece.end)


def start(piece: Notes, random: np.random.Generator) -> Notes:
    """Starts moved by N(0, 0.3 s), kept from 0 on; lengths stay."""
    starts = _starts(piece, random)
    return notes(piece.pitch, piece.velocity, starts, starts + np.maximum(piece.end - piece.start, SHORTEST))


def time(piece: Notes, random: np.random.Generator) -> Notes:
    """Starts and lengths each moved by N(0, 0.3 s); starts kept from 0 on, lengths from 10 ms on."""
    starts, ends = _times(piece, random)
    return notes(piece.pitch, piece.velocity, starts, ends)


def everything(piece: Notes, random: np.random.Generator) -> Notes:
    """Velocities, pitches, starts and lengths, each altered as above."""
    velocities, pitches = _velocities(piece, random), _pitches(piece, random)
    return notes(pitches, velocities, *_times(piece, random))


def plain(piece: Notes, random: np.random.Generator) -> Notes:
    """The pitches alone, in order: one note each 0.2 s, 0.2 s long, velocity 80."""
    starts = _STEP * np.arange(len(piece))
    return notes(piece.pitch, np.full(len(piece), 80), starts, starts + _STEP)


def _velocities(piece: Notes, random: np.random.Generator) -> np.ndarray:
    moved = piece.velocity + np.rint(random.normal(0, 30, len(piece)))
    return moved.clip(1, 127)  # a velocity of 0 would be silence in MIDI


def _pitches(piece: Notes, random: np.random.Generator) -> np.ndarray:
    return (piece.pitch + np.rint(random.normal(0, 5, len(piece)))).clip(LOWEST, HIGHEST)


def _starts(piece: Notes, random: np.random.Generator) -> np.ndarray:
    return (piece.start + random.normal(0, 0.3, len(piece))).clip(0)


def _times(piece: Notes, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    starts = _starts(piece, random)
    lengths = piece.end - piece.start + random.normal(0, 0.3, len(piece))
    return starts, starts + lengths.clip(SHORTEST)
