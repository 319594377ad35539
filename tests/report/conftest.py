"""Three small runs, trained once for all tests of reports and comparisons."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import run_values, train_in, write_corpus

RUNS: dict[str, dict[str, Any]] = {
    "slow": {"optimizer": {"lr": 1e-9}},
    "fast": {"optimizer": {"lr": 1e-2}},
    "page": {
        "evaluate": {"every": 2, "text_modeling": {}},
        "sample": {"prompts": ["the <cat> & dog", "it"], "max_tokens": 8},
    },
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the runs "slow" and "fast", which differ in the learning rate, and "page" are trained."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder / "corpus")
    for name, sections in RUNS.items():
        sources = [{"kind": "text", "path": "corpus", "label": "words"}]
        values = run_values(
            name=name,
            data={"sources": sources, "validation": 0.2, "sequence_length": 32},
            model={"width": 32},
            train={"steps": 6, "log_every": 1},
            evaluate={"every": 2, "samples": 9},
        )
        train_in(folder, **values | sections)
    return folder


@pytest.fixture
def two(trained: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The names of the runs "slow" and "fast", from the folder where they are found."""
    monkeypatch.chdir(trained)
    return "slow", "fast"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run "page", which a test may change."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained / "runs/page", "runs/page"))
