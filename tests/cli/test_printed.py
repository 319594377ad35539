"""Texts of users on the terminal and in pictures: shown as they are, and obeyed nowhere."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from tests.helpers import Command, run_values

from quintet.cli.inputs import echo
from quintet.cli.show_batch import painted
from quintet.data.batch import Batch
from quintet.errors import printable
from quintet.report.plots import Curve, draw
from quintet.tokenize.simple import ByteTokenizer
from quintet.track.console import Reporter

HOSTILE = "[red]x[/] [/] {0} $\\frac$ \x1b[2J\x1b]0;t\x07 \u202eevil\u2066 \x9b2J \u2028 \ud800 end"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SHOWN = r"[red]x[/] [/] {0} $\frac$ \x1b[2J\x1b]0;t\x07 \u202eevil\u2066 \x9b2J \u2028 \ud800 end"


def unsteered(text: str) -> str:
    """``text`` without the colours that rich writes itself; what else steers a terminal is a failure."""
    found = re.sub("\x1b\\[[0-9;]*m", "", text).replace("\r\n", "\n")
    assert STEERING.findall(found) == []
    return found


def test_what_is_printable_stays_and_the_rest_is_an_escape() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\n") == r"a\tb\n"
    assert printable("a\tb\n\r", lines=True) == "a\tb\n\\r"
    for text in ("é𝄞 ⏎∎ 日本語 عربى", "👩\u200d🔬", "\\x1b"):
        assert printable(text) == text


def test_lines_and_the_line_that_moves_show_the_text_itself() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=400, color_system=None, legacy_windows=False)
        reporter = Reporter(console)
        reporter.say(f"{HOSTILE}\nnext")
        reporter.preparing(f"tokenising {HOSTILE}", 1, 2)
        reporter.close()
        moved = re.sub("\x1b\\[(\\?25[lh]|2K|1A)", "", out.getvalue()).replace("\r", "")  # of rich's own moving line
        lines = unsteered(moved).splitlines()
        assert lines[:2] == [SHOWN, "next"]
        assert any(line.startswith(f"tokenising {SHOWN}") for line in lines[2:])


def test_an_error_is_one_line_whatever_the_name_in_it(tmp_path: Path, command: Command) -> None:
    for name in ("kind\na\x1b[2J", "\u202e.yaml", "[red]x[/]"):
        code, _, err = command("check", str(tmp_path / name))
        assert code == 2
        assert unsteered(err).startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_text_is_exact_for_a_file_and_harmless_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    echo("\x1b[2J", exact=True)
    echo("\x1b[2J\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    echo("\x1b[2J\n", exact=True)
    assert capsys.readouterr().out.split("\n\n") == ["\x1b[2J\n\\x1b[2J", "\\x1b[2J", ""]


def test_samples_of_a_batch_show_tokens_that_steer() -> None:
    text = "a\x1b[2J[red]b[/]\u202e\n\x00".encode()
    ids = np.frombuffer(text, np.uint8).astype(np.int64)[None]
    batch = Batch(ids, ids, int(ids.size), np.zeros(1, np.int64), documents=np.zeros_like(ids))
    assert painted(batch, 0, ByteTokenizer()).plain == "a\\x1b[2J[red]b[/]\\u202e⏎\n\\x00\\x00"


def test_batches_runs_and_comparisons_show_labels_and_names(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(4):
        Path(f"texts/{number}.txt").write_text(f"\x1b[2J[red]{number}[/] \u202e" * 20)
    label = "[red]x[/] [/] {0} $\\frac$ \x1b[2J \u202e"
    sources = [{"kind": "text", "path": "texts", "label": label}]
    values = run_values(name="it", data={"sources": sources, "sequence_length": 32, "cache_dir": "cache"})
    Path("run.yaml").write_text(yaml.safe_dump(values))
    code, out, err = command("show-batch", "run.yaml", "data.validation=0")
    assert code == 0
    unsteered(err)
    assert f"of {printable(label)}" in unsteered(out)
    assert r"\x1b[2J[red]" in out
    names = ["[red]x", "$\\frac$ [b] \x1b[2J\u202e\n"]
    for name in names:  # of runs that were made when runs could have such names
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(values | {"name": "it"}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 2.0}) + "\n")
    for line in (["runs"], ["compare", "--recorded", *(f"runs/{name}" for name in names), "-o", "curves.png"]):
        monkeypatch.setenv("COLUMNS", "300")
        code, out, err = command(*line)
        assert code == 0, err
        for name in names:
            assert printable(name) in unsteered(out)


def test_a_picture_shows_a_label_and_a_title_and_no_formula() -> None:
    label = "$\\frac$ [red] \x1b \u202e\n$"
    curve = Curve(label, np.arange(3.0), np.arange(3.0), "#000000")
    figure = draw([(label, [curve, curve])], (3, 2), ink="#222222")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == printable(label)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [printable(label)] * 2
    figure.savefig(io.BytesIO(), format="png")  # where matplotlib reads a formula and fails
