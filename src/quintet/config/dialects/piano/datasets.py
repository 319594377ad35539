"""The data sets that piano-gpt's files name, as native sources: on the hub, in a folder, or a folder of MIDI files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quintet.config.dialects.piano.music_keys import FULL, TEST
from quintet.config.names import local_path

SPLITS = ("train", "validation", "test")
_MIDI = (".mid", ".midi")
_ROWS = (".parquet", ".jsonl", ".json", ".arrow")


class NoSplit(Exception):
    """A folder of MIDI files has folders for splits, and none for the one that is asked for."""


def training_source(name: str, pauses: float) -> dict[str, Any]:
    """What is trained on of the data set ``name``."""
    return _source(name, "train", {"pauses": pauses})


def validation_sources(name: str, splits: Sequence[str], pauses: float) -> list[dict[str, Any]]:
    """What is validated on of the data set ``name``: a source for each of ``splits``, labelled with it."""
    found = []
    for label in dict.fromkeys(splits):
        music = {"pauses": pauses} | ({} if label in (FULL, TEST) else {"only_by": [label]})
        found.append(_source(name, TEST if label == TEST else "validation", music) | {"label": label})
    return found


def without_splits(name: str) -> bool:
    """Whether ``name`` is a folder of MIDI files that are not divided into splits."""
    return _holds_midi(name) and not any((local_path(name) / split).is_dir() for split in SPLITS)


def _source(name: str, split: str, music: dict[str, Any]) -> dict[str, Any]:
    if not _holds_midi(name):
        return {"kind": "huggingface", "path": name, "split": split, "document": {"kind": "notes", **music}}
    folder = local_path(name)
    if without_splits(name):
        return {"kind": "midi", "path": str(folder), **music}
    if not (folder / split).is_dir():
        raise NoSplit(f"{name} is a folder of MIDI files with folders of splits, and has no folder {split!r}; make it")
    return {"kind": "midi", "path": str(folder / split), **music}


def _holds_midi(name: str) -> bool:
    """Whether ``name`` is a folder with MIDI files and no rows of a data set."""
    folder = local_path(name)
    if not folder.is_dir():
        return False
    endings = {path.suffix.lower() for path in folder.rglob("*")}
    return not endings.isdisjoint(_MIDI) and endings.isdisjoint(_ROWS)
