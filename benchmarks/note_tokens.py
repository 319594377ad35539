"""Speed of the tokenizers of notes on one core: notes per second to ids and back, and ids per note.

    python benchmarks/note_tokens.py [FOLDER of MIDI files] [--notes 200000] [--rounds 3]

Without a folder, pieces of 5,000 notes are generated: ten onsets per second, half a second long on average. Pieces are
in memory before the clock starts. The tokenizers alternate, and the fastest round of each counts. MidiTok's tokenizers
get a tenth of the notes, because they are slow.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quintet.config.tokenizer import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
)
from quintet.piano.notes import Notes, notes
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.piano.tokenizers.bpe import train
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer
from quintet.piano.tokenizers.miditok import MidiTokTokenizer

PIECE = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--notes", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    pieces = read(given.folder) if given.folder else [made_up(seed) for seed in range(max(1, given.notes // PIECE))]
    print(f"{sum(map(len, pieces)):,} notes in {len(pieces)} pieces")
    tokenizers = every_tokenizer(pieces)
    rounds = [
        {name: measured(one, share(name, pieces)) for name, one in tokenizers.items()} for _ in range(given.rounds)
    ]
    print(f"{'':24}{'ids':>8}{'ids a note':>12}{'notes/s to ids':>16}{'notes/s back':>14}")
    for name, tokenizer in tokenizers.items():
        count = sum(map(len, share(name, pieces)))
        there, back = (min(found[name][way] for found in rounds) for way in (0, 1))
        ids = rounds[0][name][2] / count
        print(f"{name:24}{tokenizer.vocab_size:8,}{ids:12.2f}{count / there:16,.0f}{count / back:14,.0f}")


def every_tokenizer(pieces: Sequence[Notes]) -> dict[str, NoteTokenizer]:
    exponential = ExponentialTimeTokenizer(ExponentialTimeTokenizerConfig(kind="exponential_time", outside="drop"))
    began = time.perf_counter()
    merged = train(NoteBPETokenizerConfig(kind="note_bpe"), exponential, pieces)
    print(f"note_bpe: trained in {time.perf_counter() - began:.1f} s")
    families = ("REMI", "TSD", "MIDILike", "PerTok")
    return {
        "exponential_time": exponential,
        "note_bpe": merged,
        **{
            f"miditok {family}": MidiTokTokenizer(
                MidiTokTokenizerConfig(kind="miditok", family=family, outside="drop", special_tokens=0)
            )
            for family in families
        },
    }


def share(name: str, pieces: Sequence[Notes]) -> Sequence[Notes]:
    return pieces[: max(1, len(pieces) // 10)] if name.startswith("miditok") else pieces


def measured(tokenizer: NoteTokenizer, pieces: Sequence[Notes]) -> tuple[float, float, int]:
    """Seconds to encode all pieces, seconds to decode them, ids."""
    began = time.perf_counter()
    ids = [tokenizer.encode_notes(piece) for piece in pieces]
    encoded = time.perf_counter()
    for one in ids:
        tokenizer.decode_notes(one)
    return encoded - began, time.perf_counter() - encoded, sum(map(len, ids))


def read(folder: Path) -> list[Notes]:
    from quintet.piano.midi import read_midi

    return [read_midi(file) for file in sorted(folder.rglob("*.mid"))]


def made_up(seed: int) -> Notes:
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.exponential(0.1, PIECE))
    end = start + draw.exponential(0.5, PIECE) + 0.01
    return notes(draw.integers(21, 109, PIECE), draw.integers(1, 128, PIECE), start, end)


if __name__ == "__main__":
    main()
