from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quintet.files import to_json
from quintet.track.jsonl import JsonlTracker, read_metrics, read_samples


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, 0)
    tracker.log(1, {"train/loss": 0.1 + 0.2, "train/lr": 1e-4})
    tracker.log(2, {"train/loss": 1 / 3})
    # Nothing is held back: a kill after the call loses no record.
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.1 + 0.2, "train/lr": 1e-4},
        {"step": 2, "train/loss": 1 / 3},
    ]
    tracker.close()


def test_a_continued_run_drops_what_it_will_write_again(tmp_path: Path) -> None:
    first = JsonlTracker(tmp_path, 0)
    for step in range(1, 6):
        first.log(step, {"train/loss": float(step)})
        first.text(step, "sample 0", f"text of {step}")
    first.close()
    second = JsonlTracker(tmp_path, 3)
    second.log(4, {"train/loss": 40.0})
    second.text(4, "sample 0", "again")
    second.close()
    assert [(r["step"], r["train/loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-00000{n}.txt" for n in (1, 2, 3, 4)
    ]
    assert (tmp_path / "samples" / "step-000004.txt").read_text() == "--- sample 0\nagain\n"


def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert read_metrics(file) == [{"step": 1, "train/loss": 2.0}]
    JsonlTracker(tmp_path, 1).close()
    assert file.read_text() == '{"step": 1, "train/loss": 2.0}\n'


def no_json(word: str) -> float:
    raise AssertionError(f"{word} is no JSON (RFC 8259, section 6)")


FIGURES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(FIGURES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@example({"perplexity": math.inf, "loss": [math.nan, -math.inf, 1.8e308, 5e-324]})
def test_what_leaves_the_program_as_json_is_json(value: Any) -> None:
    def known(one: Any) -> Any:
        if isinstance(one, dict):
            return {name: known(inner) for name, inner in one.items()}
        if isinstance(one, list):
            return [known(inner) for inner in one]
        return None if isinstance(one, float) and not math.isfinite(one) else one

    for ascii in (True, False):
        found = json.loads(to_json(value, ascii=ascii), parse_constant=no_json)
        assert repr(found) == repr(known(value))


def test_a_figure_that_is_not_finite_is_null_in_the_file_and_nan_where_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "train/loss": NaN, "validation/perplexity": Infinity}\n')  # of earlier versions
    tracker = JsonlTracker(tmp_path, 1)
    tracker.log(2, {"train/loss": math.nan, "validation/perplexity": math.inf, "train/lr": 0.5})
    tracker.log(2, {})
    tracker.close()
    lines = [json.loads(line, parse_constant=no_json) for line in file.read_text().splitlines()]
    assert lines == [
        {"step": 1, "train/loss": None, "validation/perplexity": None},
        {"step": 2, "train/loss": None, "validation/perplexity": None, "train/lr": 0.5},
    ]
    read = read_metrics(file)
    assert all(math.isnan(row["train/loss"]) and math.isnan(row["validation/perplexity"]) for row in read)


def test_of_the_step_that_a_run_continues_from_what_is_due_is_written_again(tmp_path: Path) -> None:
    first = JsonlTracker(tmp_path, -1)
    for step in (1, 2):
        first.log(step, {"train/loss": float(step)})
        for group in ("validation/loss", "text/bits_per_byte", "benchmark/copa/acc"):
            first.log(step, {group: 1.0})
        first.text(step, "sample 0", "text")
    first.close()
    JsonlTracker(tmp_path, 2, ["text modelling", "samples"]).close()
    kept = [(row["step"], *list(row)[1:]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert kept[4:] == [(2, "train/loss"), (2, "validation/loss"), (2, "benchmark/copa/acc")]
    assert len(kept) == 7
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000001.txt"]


LINES = st.sampled_from(
    ["--- sample 1", "--- ", "---", "\\--- a", "\\\\--- sample 0", " --- a", "word", "", "a\rb", "\r", "\u2028--- a"]
)


@given(st.lists(st.lists(LINES).map("\n".join) | st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
@example(["a\n--- sample 1\nb", "\\--- a"])
def test_samples_are_read_as_they_were_written(texts: list[str]) -> None:
    with TemporaryDirectory() as folder:
        tracker = JsonlTracker(Path(folder), -1)
        for index, text in enumerate(texts):
            tracker.text(5, f"sample {index}", text)
        tracker.close()
        assert read_samples(Path(folder) / "samples/step-000005.txt") == [
            (f"sample {index}", text) for index, text in enumerate(texts)
        ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_of_samples_of_an_earlier_version_is_read(newline: str, tmp_path: Path) -> None:
    with (tmp_path / "old.txt").open("w", newline=newline) as out:
        out.write("--- sample 0\none\ntwo\n--- sample 1\n\n")
    assert read_samples(tmp_path / "old.txt") == [("sample 0", "one\ntwo"), ("sample 1", "")]
