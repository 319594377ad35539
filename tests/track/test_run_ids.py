from __future__ import annotations

import os
from pathlib import Path

import pytest

from quintet.track.names import RunIds


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
