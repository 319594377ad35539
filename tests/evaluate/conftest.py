"""Small models of music that are trained once for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import PEAK, run_values

from quintet.config.schema import RunConfig
from quintet.piano.midi import write_midi
from quintet.piano.notes import Notes, notes
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.trained import TrainedRun, load_trained

TASKS = ["high_notes_masking-x4", "stride_notes_masking-x2"]
TrainMusic = Callable[..., str]


def piece(seed: int, count: int) -> Notes:
    """Return notes at the times of the tokenizer's grid, each pitch at most once."""
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.integers(8, 30, count)) / 100
    pitch = draw.permutation(np.arange(40, 90))[:count]
    return notes(pitch, draw.integers(20, 110, count), start, start + draw.integers(5, 40, count) / 100)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short pieces as MIDI files in ``music/``."""
    found = tmp_path_factory.mktemp("piano")
    (found / "music").mkdir()
    for seed, composer in enumerate(("Bach", "Chopin", "Nobody")):
        write_midi(piece(seed, 15), found / f"music/{composer} {seed}.mid")
    return found


@pytest.fixture(scope="session")
def train_music(folder: Path) -> TrainMusic:
    """Train a model on the pieces, which it is also validated on, and return its folder."""

    def call(name: str, steps: int, data: dict[str, Any] | None = None, **sections: Any) -> str:
        source = {"kind": "midi", "path": str(folder / "music")}
        own = {
            "sources": [source],
            "validation_sources": [source],
            "deduplicate_validation": False,
            "sequence_length": 160,
            "cache_dir": str(folder / "cache"),
        }
        values = run_values(
            folder,
            name=name,
            tokenizer={"kind": "exponential_time"},
            model={"layers": 2, "width": 64, "position": {"kind": "rope"}},
            optimizer={"lr": 5e-3},
            schedule={"kind": "cosine", "warmup_steps": min(10, steps - 1)},
            train={"steps": steps, "batch_size": 8},
            evaluate={"every": None, "at_end": False},
            checkpoint={"keep_best": False},
        )
        train(RunConfig.model_validate(values | {"data": own | (data or {})} | sections), Reporter(), peak_flops=PEAK)
        return str(folder / "runs" / name)

    return call


@pytest.fixture(scope="session")
def memorised(train_music: TrainMusic) -> TrainedRun:
    """A model that knows every record of the pieces and every answer by heart."""
    packing = {"kind": "tasks", "notes_per_record": 14, "tasks": TASKS}
    return load_trained(train_music("memorised", 260, {"packing": packing}))


@pytest.fixture(scope="session")
def continuing(train_music: TrainMusic) -> str:
    """The folder of a model that goes on from pieces, hardly trained."""
    return train_music("continuing", 12)
