from __future__ import annotations

from pathlib import Path

from quintet.track.jsonl import JsonlTracker, read_metrics


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
