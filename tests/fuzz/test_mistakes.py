"""Mistakes planted in files of all dialects and in native ones, two or three at a time: each is told, once, at its key.

The reference is what is told of each mistake by itself.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.planted import NATIVE, base, check_several
from tests.dialects.small_files import SmallFile
from tests.dialects.small_files import small_file as small_file  # a fixture

from quintet.config.dialects import NAMES


@pytest.mark.parametrize("name", [*NAMES, *NATIVE])
@pytest.mark.fuzz(round=10)
@given(seed=st.integers(0, 2**32))
def test_mistakes_are_told_together_as_they_are_alone(name: str, small_file: SmallFile, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = base(name, small_file, Path(folder))
        check_several(random.Random(seed), name, values, Path(folder))
