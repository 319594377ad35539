"""Pieces cut where the piano is silent."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from quintet.piano.notes import Notes


def split_at_pauses(piece: Notes, threshold: float) -> list[Notes]:
    """The parts of a piece between silences of more than ``threshold`` seconds, in their order.

    A silence lasts from the latest end of all notes before it to the next start. Every note is in exactly one part,
    those behind the last silence too. Times stay as they are; ``part.moved(-part.start[0])`` lets a part begin at 0.
    """
    sounding = np.maximum.accumulate(piece.end)
    cuts = np.flatnonzero(piece.start[1:] - sounding[:-1] > threshold) + 1
    edges = [0, *cuts.tolist(), len(piece)]
    return [piece[begin:end] for begin, end in pairwise(edges) if end > begin]
