"""What the tests of data have in common: run files and small corpora."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintet.config.schema import RunConfig

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """A run config over the given sources with a byte tokenizer; keyword arguments are further keys of `data`."""

    def make(
        *sources: dict[str, Any], tokenizer: dict[str, Any] | None = None, batch: int = 4, **data: Any
    ) -> RunConfig:
        return RunConfig.model_validate(
            {
                "name": "test",
                "data": {"sources": list(sources), "cache_dir": str(tmp_path / "cache"), "sequence_length": 8, **data},
                "tokenizer": tokenizer or {"kind": "byte"},
                "train": {"steps": 1, "batch_size": batch},
            }
        )

    return make
