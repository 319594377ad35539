"""A small model of piano music, trained once for all tests of the page."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers import run_values, train_in

from quintet.piano.midi import write_midi
from quintet.piano.notes import Notes, notes

pytest.importorskip("symusic")


def melody(seed: int, count: int = 60) -> Notes:
    """Return single notes of random pitch, one per 0.2 s, with a pause after each."""
    draw = np.random.default_rng(seed)
    start = np.arange(count) * 0.2
    return notes(draw.integers(40, 90, count), draw.integers(20, 110, count), start, start + 0.15)


@pytest.fixture(scope="session")
def music_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run on tasks: 8 pieces, of which a quarter is held out, and a context of 256 tokens."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "midi").mkdir()
    for seed in range(8):
        write_midi(melody(seed), folder / f"midi/{'Bach' if seed % 2 else 'Liszt'} {seed}.mid")
    values = run_values(
        folder,
        name="music",
        data={
            "sources": [{"kind": "midi", "path": str(folder / "midi"), "dataset": "maestro"}],
            "validation": 0.25,
            "sequence_length": 256,
            "learn_prompts": True,  # so that it can go on, too
            "packing": {"kind": "tasks", "notes_per_record": 24, "tasks": ["high_notes_masking-x5", "top_line-x1"]},
        },
        tokenizer={"kind": "exponential_time"},
        model={"width": 32},
        optimizer={"lr": 1e-2},
        schedule={"kind": "constant"},
        train={"steps": 60},
    )
    return str(train_in(folder, **values))
