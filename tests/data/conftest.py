"""Fixtures of the tests of data: run files and small corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.helpers import MakeConfig, run_values

from quintet.config.schema import RunConfig


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """A run config over the given sources with a byte tokenizer; keyword arguments are further keys of `data`."""

    def make(
        *sources: dict[str, Any], tokenizer: dict[str, Any] | None = None, batch: int = 4, **data: Any
    ) -> RunConfig:
        values = run_values(tmp_path, tokenizer=tokenizer or {"kind": "byte"}, train={"batch_size": batch})
        own = {"sources": list(sources), "cache_dir": str(tmp_path / "cache"), "sequence_length": 8}
        return RunConfig.model_validate(values | {"data": own | data})

    return make
