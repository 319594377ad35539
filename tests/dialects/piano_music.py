"""Small data sets of notes in piano-gpt's form: splits of rows with `notes` and `source`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dialects.conftest import Made, Make, remove, set_in

from quintet.data.note_samples import NoteSamples
from quintet.piano.notes import Notes, notes

COMPOSERS = ("Johann Sebastian Bach", "Frédéric Chopin", "Franz Liszt")


def piece(seed: int, count: int = 40) -> Notes:
    """Random notes, each of which starts before the previous one ends."""
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.uniform(0.05, 0.3, count))
    return notes(
        draw.integers(40, 90, count), draw.integers(20, 110, count), start, start + draw.uniform(0.3, 0.9, count)
    )


def row(one: Notes, composer: str, dataset: str = "maestro") -> dict[str, Any]:
    """A piece as a row of a data set."""
    columns = {name: getattr(one, name).tolist() for name in ("pitch", "velocity", "start", "end")}
    return {"notes": columns, "source": json.dumps({"composer": composer, "dataset": dataset})}


def write_data_set(folder: Path, seed: int = 0, **splits: list[dict[str, Any]]) -> Path:
    """A data set as `save_to_disk` writes it: ``splits``, or train, validation and test of the composers above."""
    import datasets

    counts = {"train": 6, "validation": 3, "test": 2}
    made = splits or {
        split: [row(piece(seed + 100 * place + index), COMPOSERS[index % 3]) for index in range(count)]
        for place, (split, count) in enumerate(counts.items())
    }
    parts = {split: datasets.Dataset.from_list(rows) for split, rows in made.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def music_file(folder: Path, cache: Path) -> dict[str, Any]:
    """A complete file that trains on the music of the data set in ``folder`` in a moment."""
    return {
        "stage": "piano_task",
        "init_from": "scratch_next_token",
        "loss_masking": "finetuning",
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16},
        "system": {"device": "cpu", "dtype": "float32", "data_workers": 1},
        "data": {"batch_size": 2, "context_size": 256, "notes_per_record": 16},
        "dataset": {"base_dataset_name": str(folder), "extra_datasets": [str(folder)]},
        "optimizer": {"gradient_accumulation_steps": 1, "max_iters": 2},
        "lr": {"learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 1},
        "eval_interval": 4,
        "eval_iters": 4,
        "logging": {"wandb_log": False},
        "out_dir": "out",
        "quintet": {"data": {"cache_dir": str(cache)}},
    }


def music_make(make: Make, folder: Path, cache: Path) -> Make:
    """``make`` for `music_file`, with some keys set and some removed."""

    def build(changes: Mapping[str, Any] | None = None, *, without: Iterable[str] = ()) -> Made:
        values = music_file(folder, cache)
        for path in without:
            remove(values, path)
        for path, value in (changes or {}).items():
            set_in(values, path, value)
        return make(values)

    return build


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("music") / "notes")


@pytest.fixture
def music(make: Make, data_set: Path, tmp_path: Path) -> Make:
    return music_make(make, data_set, tmp_path / "cache")


def samples(made: Made, source: int = 0, *, held_out: bool = False) -> NoteSamples:
    """The samples of a source to train on, or to validate on."""
    data = made.run.validation if held_out else made.run.data
    assert data is not None
    found = data.source_samples[source]
    assert isinstance(found, NoteSamples)
    return found


def words(made: Made, index: int, source: int = 0) -> list[str]:
    """The names of the tokens of a sample."""
    one = samples(made, source)
    return [one.tokenizer.names()[token] for token in one.sample(index).ids.tolist()]
