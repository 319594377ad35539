"""Files as the five frameworks write them: accepted as they are, or refused for the reason that they name.

Each YAML file under ``real_files/<dialect>/`` is about one cause. Its first line says what comes of it, checked where
its data are not: ``# expect: ok``, or ``# expect: `` and words of the refusal, which must be the only one. A file with
a `defaults` list has the files that it names in folders beside it, which have no such line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import quintet
from quintet.api import loaded_of

FOLDER = Path(__file__).parent / "real_files"
_EXPECT = "# expect: "


def _expected(file: Path) -> str | None:
    """What the first line of ``file`` says of it, None for a part of another file."""
    first = file.read_text("utf-8").partition("\n")[0]
    return first.removeprefix(_EXPECT).strip() if first.startswith(_EXPECT) else None


FILES = {
    file.relative_to(FOLDER).as_posix(): expected
    for file in sorted(FOLDER.rglob("*.yaml"))
    if (expected := _expected(file)) is not None
}


def refusals(file: Path) -> list[str]:
    """What `check` refuses of ``file``, which must be recognised as one of the dialect that its folder names."""
    try:
        config = quintet.load_config(file)
        loaded = loaded_of(config)
        recognised = loaded and loaded.dialect and loaded.dialect.name
        assert recognised == file.relative_to(FOLDER).parts[0]
        quintet.check(config)
    except quintet.UserError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("name", FILES)
def test_a_file_as_a_framework_writes_it_is_accepted_or_refused_for_the_reason_that_it_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = refusals(FOLDER / name)
    if FILES[name] == "ok":
        assert not found
    else:
        assert [FILES[name] in one for one in found] == [True], found


def test_each_file_says_what_is_expected_of_it_or_is_part_of_one_that_does() -> None:
    told = {(FOLDER / name).parent for name in FILES}
    strays = [file for file in FOLDER.rglob("*.y*ml") if _expected(file) is None and file.parent.parent not in told]
    assert not strays
