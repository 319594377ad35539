"""Folders of an earlier version: a run that was stopped after 4 of its 8 steps, its data, and its whole curve."""

from __future__ import annotations

import json
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.helpers import contents

ARCHIVE = Path(__file__).parent / "files" / "run_0.1.0.tar.xz"
COMPARED = ("train/loss", "train/lr", "train/grad_norm", "validation/loss")


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if version("tokenizers") != "0.23.3":
        pytest.skip("the earlier run's tokens are made anew by another version of tokenizers, and the run is refused")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def curve(file: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: row[name] for name in ("step", *COMPARED) if name in row} for row in rows]


def test_a_run_of_an_earlier_version_continues_bit_for_bit_on_its_own_store(earlier: Path, command) -> None:
    data, run = contents(earlier / "data"), earlier / "runs" / "old"
    code, out, error = command("train", "old.yaml", "train.steps=8")
    assert code == 0, error
    assert "continuing from step 4" in out
    assert contents(earlier / "data") == data  # the tokens and the tokenizer are read, not made anew

    continued, expected = curve(run / "metrics.jsonl"), curve(earlier / "expected.jsonl")
    assert [row["step"] for row in continued] == [row["step"] for row in expected]
    for row, wanted in zip(continued, expected, strict=True):  # another processor may add in another order
        assert row == pytest.approx(wanted, rel=1e-5)

    assert command("train", "old.yaml", "train.steps=8", "name=whole")[0] == 0
    assert curve(earlier / "runs" / "whole" / "metrics.jsonl")[-5:] == continued[-5:]  # steps 5 to 8, validations too


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "runs/old/run.yaml"),
        ("runs",),
        ("data", "old.yaml"),
        ("generate", "runs/old", "--prompt", "river", "--max-tokens", "4"),
        ("report", "runs/old"),
        ("export", "runs/old", "out", "--to", "huggingface"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_run_of_an_earlier_version_is_read_by(earlier: Path, command, arguments: tuple[str, ...]) -> None:
    code, _, error = command(*arguments)
    assert code == 0, error


def test_a_run_of_an_earlier_version_is_evaluated_as_it_was(earlier: Path, command) -> None:
    code, out, error = command("evaluate", "runs/old")
    assert code == 0, error
    at_step_4 = next(row for row in curve(earlier / "expected.jsonl") if row["step"] == 4 and "validation/loss" in row)
    assert f"{at_step_4['validation/loss']:.4f}" in out
