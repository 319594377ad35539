"""What folders on disk say of themselves: datasets that save_to_disk wrote, and checkpoints of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quintet.config.names import local_path

# Names of the model's number of positions in config.json, the usual one first.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def splits_of(path: str) -> list[str] | None:
    """The splits of the dataset that save_to_disk wrote to ``path``; None where there is no such dataset.

    A dataset by itself has one split, the name it was saved under, which is train where it had none.
    """
    folder = local_path(path)
    several, one = _json(folder / "dataset_dict.json"), _json(folder / "state.json")
    if several is not None:
        return [str(name) for name in several.get("splits", [])]
    return None if one is None else [str(one.get("_split") or "train")]


def split_in(path: str, *wanted: str) -> str:
    """The first of ``wanted`` that the dataset at ``path`` has, else its only split, else the first of ``wanted``."""
    found = splits_of(path) or []
    held = [name for name in wanted if name in found]
    return held[0] if held else found[0] if len(found) == 1 else wanted[0]


def positions_of(path: str) -> int | None:
    """Most positions of the checkpoint in the folder ``path``, None where it does not say."""
    settings = _json(local_path(path) / "config.json") or {}
    found = [settings[name] for name in _POSITIONS if isinstance(settings.get(name), int)]
    return found[0] if found else None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
