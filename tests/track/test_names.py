"""Pictures of music in each tracker, with the same pixels; and the ids of a run in its trackers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import run_config

from quintet.track.composite import build_trackers
from quintet.track.names import RunIds
from quintet.track.tracker import Tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytest.importorskip("PIL")


@pytest.mark.parametrize(
    ("track", "pattern"),
    [
        (
            {"kind": "wandb", "arguments": {"project": "tests", "mode": "offline"}},
            "wandb/offline-run-*/files/media/**/*.png",
        ),
        ({"kind": "mlflow"}, "mlflow/**/samples/step-000002/sample 0.png"),
    ],
    ids=["wandb", "mlflow"],
)
def test_a_picture_is_kept_with_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: dict[str, Any], pattern: str
) -> None:
    pytest.importorskip(track["kind"])
    for name in ("WANDB_CACHE_DIR", "WANDB_FINISH_TIMEOUT", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    config = run_config(train={"steps": 3}, track=[track])
    said: list[str] = []
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    tracker = build_trackers(Tracked(config, tmp_path, -1, {"device": "cpu"}, said.append))
    tracker.files(2, "sample 0", {".mid": b"MThd", ".png": png(pixels)})
    tracker.close()
    assert said == []
    (kept,) = tmp_path.glob(pattern)
    assert np.array_equal(pixels_of(kept.read_bytes()), pixels)
    assert (tmp_path / "samples/step-000002.mid").read_bytes() == b"MThd"


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_ids_are_kept_by_place(tmp_path: Path) -> None:
    RunIds(tmp_path).set("wandb /p", "a")
    RunIds(tmp_path).set("mlflow mlflow.db", "b")
    found = RunIds(tmp_path)
    assert (found.get("wandb /p"), found.get("mlflow mlflow.db"), found.get("wandb /q")) == ("a", "b", None)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunIds(tmp_path).set("wandb /p", "a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunIds(tmp_path).set("wandb /p", "b")
    assert RunIds(tmp_path).get("wandb /p") == "a"
