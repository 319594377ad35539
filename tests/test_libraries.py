"""Other libraries: one line where one is missing or broken, and where it does not take what it is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from quintet.errors import UserError, nearest, one_line
from quintet.libraries import check_arguments, check_installed, check_name, is_installed, require


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require("json.decoder", "x", "this").__name__ == "json.decoder"
    monkeypatch.setitem(sys.modules, "symusic", None)
    assert not is_installed("symusic")
    line = "reading MIDI needs symusic, which is not installed; pip install 'quintet[piano]'"
    with pytest.raises(UserError) as found:
        require("symusic", "piano", "reading MIDI")
    assert str(found.value) == line
    with pytest.raises(UserError) as found:
        check_installed("json", "symusic", extra="piano", what="reading MIDI", otherwise="leave it out")
    assert str(found.value) == f"{line}, or leave it out"


def test_a_library_that_is_there_and_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise ImportError('libcudart.so.12: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs broken_library, which cannot be imported \(libcudart.so.12: no such"):
        require("broken_library", "hf", "this")


def _function(a: int, b: int, c: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"a": 1, "b": 2}, []),
        ({"a": 1}, ["k: f needs b"]),
        ({"a": 1, "b": 1, "zzz": 1}, ["k.zzz: f has no such argument; it has a, b"]),
        ({"a": 1, "b": 1, "c": 1}, ["k.c: is ours"]),
        ({"a": 1, "b": 1, "bb": 1}, ["k.bb: f has no such argument; did you mean b? it has a, b"]),
    ],
)
def test_arguments_are_known_and_complete(given: dict[str, Any], problems: list[str]) -> None:
    found: list[str] = []
    try:
        check_arguments("k", "f", _function, given, {"c": "is ours"})
    except UserError as error:
        found = list(error.problems)
    assert found == problems


def test_a_name_is_found_in_any_case() -> None:
    check_name("k", "SGD", ["SGD", "Adam"], "torch.optim")
    with pytest.raises(
        UserError, match=r"k: torch.optim has no 'sgdd' for a run; did you mean SGD\? there are SGD, Adam"
    ):
        check_name("k", "sgdd", ["SGD", "Adam"], "torch.optim")
    assert nearest("tsepe", ["step", "steep", "steps"]) == "steep"
    assert nearest("xyzzy", ["step"]) is None


@pytest.mark.parametrize(
    ("error", "options", "line"),
    [
        (ValueError("a\n  b\n"), {}, "a b"),
        (ValueError(), {}, "ValueError"),
        (ValueError("a"), {"typed": True}, "ValueError: a"),
        (KeyError("a"), {}, "no 'a'"),
        (ValueError("\none.\ntwo"), {"lines": 1}, "one"),
        (ValueError("one:\ntwo.\nthree"), {"lines": 1}, "one: two"),
        (ValueError("https://me:secret@host/x is away"), {}, "https://host/x is away"),
    ],
)
def test_an_error_is_one_line(error: Exception, options: dict[str, Any], line: str) -> None:
    assert one_line(error, **options) == line
