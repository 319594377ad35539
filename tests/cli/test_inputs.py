"""The command line taken apart: files, overrides, and the options of the dialects."""

from __future__ import annotations

from pathlib import Path

import pytest

from quintet.cli.inputs import split
from quintet.errors import UserError


@pytest.mark.parametrize(
    ("typed", "files", "overrides", "options"),
    [
        (["a.yaml", "b.yaml", "x.y=1"], ["a.yaml", "b.yaml"], ["x.y=1"], {}),
        (["a.yaml", "--x.y", "1", "--x.z=2", "--x.flag", "--x.betas", "0.8,0.9"], ["a.yaml"],
         ["x.y=1", "x.z=2", "x.flag=true", "x.betas=[0.8,0.9]"], {}),
        (["a.yaml", "--x.list=[1,2]", "--x.last"], ["a.yaml"], ["x.list=[1,2]", "x.last=true"], {}),
        (["--dialect", "stlm", "a.yaml"], ["a.yaml"], [], {"dialect": "stlm"}),
        (["--config-path", "conf", "--config-name=train", "+group=one", "~gone", "++new=3"], ["conf/train.yaml"],
         ["+group=one", "~gone", "++new=3"], {"config_path": "conf", "config_name": "train"}),
        (["-cn", "train.yaml"], ["train.yaml"], [], {"config_name": "train.yaml"}),
    ],
)  # fmt: skip
def test_a_line_is_taken_apart(typed: list[str], files: list[str], overrides: list[str], options: dict) -> None:
    line = split(typed)
    assert [str(file) for file in line.files] == files
    assert line.overrides == overrides
    assert line.options == options


def test_a_file_whose_name_looks_like_an_override_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.yaml").write_text("x: 1")
    assert [str(file) for file in split(["lr=1.yaml"]).files] == ["lr=1.yaml"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["a.yaml", "--jsn"], "--jsn: no such option"),
        (["a.yaml", "--dialect"], "--dialect: needs a value"),
        (["x=1"], "no run file given"),
    ],
)
def test_what_nobody_knows_is_refused(typed: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(typed)
