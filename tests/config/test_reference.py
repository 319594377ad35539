"""The reference page in the repository is the one of the schema."""

from __future__ import annotations

from pathlib import Path

from quintet.config.describe import walk
from quintet.config.reference import reference_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "run-file.md"


def test_the_page_in_the_repository_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_page(), "run `make docs`"


def test_every_key_has_a_row_and_every_kind_a_paragraph() -> None:
    page = reference_page()
    for key in walk():
        assert key.name == "kind" or f"| `{key.name}` |" in page
        assert all(f"**`kind: {kind}`**" in page for kind in key.kinds if kind)


def test_tables_are_whole() -> None:
    for line in reference_page().splitlines():
        assert not line.startswith("|") or line.replace("\\|", "").count("|") == 6
