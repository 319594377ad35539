"""A small complete file of each dialect, for tests of all dialects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SmallFile = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> SmallFile:
    """``small_file(dialect, cache)``: a file that trains in a moment; its data are made once per module."""
    made: dict[str, Any] = {}

    def data(name: str, write: Callable[[Path], Any]) -> Any:
        if name not in made:
            made[name] = write(tmp_path_factory.mktemp(name))
        return made[name]

    def build(name: str, cache: Path) -> dict[str, Any]:
        if name == "phyagi":
            from tests.dialects import phyagi_runs

            return phyagi_runs.small_file(data(name, phyagi_runs.write_data), cache)
        if name == "vectorlm":
            from tests.dialects import vectorlm_runs

            return vectorlm_runs.small_file(data(name, vectorlm_runs.write_world), cache)
        if name == "stlm":
            from tests.dialects import stlm_runs

            return stlm_runs.small_file(data(name, stlm_runs.write_corpora))
        if name == "tmrc":
            from tests.dialects import tmrc_runs

            return tmrc_runs.small_file(data(name, lambda folder: tmrc_runs.write_dataset(folder / "words")), cache)
        from tests.dialects import piano_folders

        return piano_folders.small_file(data(name, piano_folders.write_questions), cache)

    return build
