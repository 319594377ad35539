"""Examples in docstrings are run, so that they stay true; those that need a trained run are in ``test_python``."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
WITH_EXAMPLES = [
    ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    for file in sorted(SOURCE.rglob("*.py"))
    if ">>> " in (text := file.read_text(encoding="utf-8")) and "getfixture(" not in text and file.name != "api.py"
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_a_module_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed
