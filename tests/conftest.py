"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real corpora and tokenizer files, beside the checkout or named by QUINTET_SHARED."""
    folder = Path(os.environ.get("QUINTET_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set QUINTET_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token stores and tokenizers of a test go where no other test and no user finds them."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
