from __future__ import annotations

import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quintet.files import to_json
from quintet.track.composite import CompositeTracker
from quintet.track.jsonl import JsonlTracker, last_values, read_metrics, read_samples


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


DAMAGE = {
    "NULs after a power loss": b"\0" * 40 + b"\n",
    "half a line in the middle": b'{"step": 3, "train/lo\n',
    "no step": b'{"train/loss": 1.0}\n',
    "a step that is no number": b'{"step": "3", "train/loss": 1.0}\n',
    "no UTF-8": b'{"step": 3, "train/\xff": 1.0}\n',
    "a list": b"[1, 2]\n",
    "a text for a figure": b'{"step": 3, "train/loss": "low"}\n',
    "deeply nested": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_lines_that_are_no_records_are_set_aside_and_the_others_stay(tmp_path: Path, damage: str) -> None:
    file, said = tmp_path / "metrics.jsonl", []
    whole = [f'{{"step": {step}, "train/loss": {step}.5}}\n'.encode() for step in (1, 2, 4, 5)]
    content = b"".join([*whole[:2], DAMAGE[damage], *whole[2:], b'{"step": 6, "tra'])
    file.write_bytes(content)
    assert [record["step"] for record in read_metrics(file)] == [1, 2, 4, 5]
    assert last_values(file, ["step", "train/loss", "missing"]) == {"step": 5, "train/loss": 5.5}
    tracker = JsonlTracker(tmp_path, 4, say=said.append)
    tracker.log(5, {"train/loss": 7.5})
    tracker.close()
    assert file.read_bytes() == b"".join(whole[:3]) + b'{"step": 5, "train/loss": 7.5}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    assert said == [f"{file}: 1 lines, line 3 first, are no records and are dropped; metrics.jsonl.damaged has them"]


def test_what_was_written_is_synced_once_with_the_names_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))

    def newly_synced() -> set[str]:
        synced.clear()
        tracker.sync()
        inodes = {path.stat().st_ino: path.name for path in [tmp_path, *tmp_path.rglob("*")]}
        assert len(synced) == len(set(synced))
        return {inodes[one] for one in synced}

    tracker = JsonlTracker(tmp_path, 0)
    assert newly_synced() == {tmp_path.name, "metrics.jsonl"}
    assert newly_synced() == set()
    tracker.log(1, {"train/loss": 1.5})
    assert newly_synced() == {"metrics.jsonl"}
    tracker.text(1, "sample 0", "the cat")
    tracker.text(1, "sample 1", "the dog")
    assert newly_synced() == {tmp_path.name, "samples", "step-000001.txt"}
    tracker.files(2, "sample 0", {".mid": b"x"})
    assert newly_synced() == {"samples", "step-000002.mid"}
    tracker.close()


def test_what_stands_in_the_place_of_records_and_samples_is_set_aside(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "samples").touch()
    assert (read_metrics(tmp_path / "metrics.jsonl"), last_values(tmp_path / "metrics.jsonl", ["step"])) == ([], {})
    tracker = JsonlTracker(tmp_path, 0, say=said.append)
    tracker.log(1, {"train/loss": 1.5})
    tracker.text(1, "sample 0", "the cat")
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 1.5}]
    assert read_samples(tmp_path / "samples/step-000001.txt") == [("sample 0", "the cat")]
    assert said == [
        f"{tmp_path / 'metrics.jsonl'}: is not a file; it was renamed to metrics.jsonl.damaged",
        f"{tmp_path / 'samples'}: is not a folder; it was renamed to samples.damaged",
    ]


def test_a_last_line_that_a_kill_cut_short_is_no_damage(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "train/loss": 1.5}\n{"step": 2, "tra')
    JsonlTracker(tmp_path, 1, say=said.append).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1, "train/loss": 1.5}\n'
    assert (said, len(list(tmp_path.iterdir()))) == ([], 1)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["a", "b", "c"]), st.integers(0, 99)), max_size=60))
def test_the_last_values_are_those_of_the_whole_file(tmp_path_factory: Any, rows: list[tuple[int, str, int]]) -> None:
    file, last = tmp_path_factory.mktemp("metrics") / "metrics.jsonl", dict[str, float]()
    file.write_text("".join(f'{{"step": {step}, "{name}": {value}}}\n' for step, name, value in rows))
    for record in read_metrics(file):
        last |= record
    with mock.patch("quintet.track.jsonl._BLOCK", 50):
        assert last_values(file, ["step", "a", "b", "c"]) == last


def test_of_many_records_of_training_some_are_read_and_all_others(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = []
    for step in range(1, 1001):
        speed = ', "speed/tokens_per_second": 9.0' if step % 10 == 0 else ""
        lines.append(f'{{"step": {step}, "train/loss": 1.0{speed}}}\n')
        if step % 100 == 0:
            lines.append(f'{{"step": {step}, "validation/loss": 2.0}}\n')
    file.write_text("".join(lines))
    found = read_metrics(file, at_most=100)
    assert len(read_metrics(file)) == 1010
    assert [one["step"] for one in found if "validation/loss" in one] == list(range(100, 1001, 100))
    training = [one["step"] for one in found if "train/loss" in one]
    assert 50 <= len(training) <= 110
    assert 25 <= len([one for one in found if "speed/tokens_per_second" in one]) <= 60
    assert training[-1] == 1000


@given(st.data())
def test_what_is_left_out_of_a_long_file_are_lines_of_training(tmp_path_factory: Any, data: st.DataObject) -> None:
    kinds = {
        "plain": '"train/loss": 1.5',
        "speed": '"train/loss": 1.5, "speed/tokens_per_second": 9.0',
        "odd": '"memory": 3',
        "validation": '"validation/loss": 2.0, "validation/labels/a/loss": 1.0',
        "both": '"train/loss": 1.5, "text/bits_per_byte": 1.0',
    }
    chosen = data.draw(st.lists(st.sampled_from([*kinds, *["plain"] * 8, *["speed"] * 2]), max_size=60))
    at_most = data.draw(st.integers(1, 30))
    file = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    lines = [f'{{"step": {step}, {kinds[kind]}}}\n' for step, kind in enumerate(chosen)]
    cut = data.draw(st.sampled_from(["", '{"step": 999, "train/loss": 1.5, "tr']))
    file.write_text("".join(lines) + cut)
    with mock.patch("quintet.track.jsonl._SMALL_BLOCK", data.draw(st.integers(1, 4000))):
        found = [int(record["step"]) for record in read_metrics(file, at_most)]
    training = [step for step, kind in enumerate(chosen) if kind in ("plain", "speed")]
    assert found == sorted(set(found))
    assert {step for step in range(len(chosen)) if step not in training} <= set(found)
    read = [step for step in found if step in training]
    if len(lines) + bool(cut) > at_most:
        assert len(read) <= at_most + 4
        assert len(read) >= min(len(training), at_most // 3)
    else:
        assert found == list(range(len(lines)))
    for name in ("train/loss", "speed/"):
        having = [step for step, kind in enumerate(chosen) if name in kinds[kind]]
        assert not having or having[-1] in found


def test_a_disk_that_was_full_for_a_moment_costs_a_record_and_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = JsonlTracker(tmp_path, 0)
    composite = CompositeTracker([tracker], said.append)
    composite.log(1, {"train/loss": 1.0})
    stream, tracker._stream = tracker._stream, Short(tracker._stream)
    composite.log(2, {"train/loss": 2.0})
    composite.log(3, {"train/loss": 3.0})
    tracker._stream = stream
    composite.log(4, {"train/loss": 4.0})
    composite.close()
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 4]
    assert [line.partition(": ")[0] for line in said] == [
        "Jsonl fails",
        "Jsonl failed 2 times; it lacks these records",
    ]
    assert "No space left on device" in said[0]


class Short:
    """A file on a disk that takes 3 bytes of each write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, content: bytes) -> int:
        return self._stream.write(content[:3])
