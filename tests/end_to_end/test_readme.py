"""The README shows what the commands print."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers import REPOSITORY, load_script


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("benchmarks/readme.py")


@pytest.mark.parametrize("verb", ["check", pytest.param("plan", marks=pytest.mark.slow)])
def test_the_readme_shows_what_a_command_prints(verb: str, script: Any) -> None:
    """Otherwise run `python benchmarks/readme.py`."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = {command: output for command, _, output in script.OUTPUT.findall(readme)}
    [command] = [command for command in shown if command.startswith(verb)]
    assert script.printed(command, readme) == shown[command]


def test_the_pictures_of_the_readme_are_there(script: Any) -> None:
    assert script.PICTURE.is_file()
    assert str(script.PICTURE.relative_to(REPOSITORY)) in script.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["report.html"], ["--picture", "report.html"], ["--picture", "README.md"]])
def test_an_argument_that_is_no_report_leaves_everything_as_it_was(arguments: list[str], script: Any) -> None:
    before = script.PICTURE.read_bytes(), script.README.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    assert (script.PICTURE.read_bytes(), script.README.read_bytes()) == before
