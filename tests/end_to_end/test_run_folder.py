"""A run folder that was copied, moved, or made in part continues as what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import QUICK, contents, records

from quintet.config.load import load_run_config
from quintet.train.checkpoint_files import checkpoint_steps
from quintet.train.run_lock import RunLock

Quintet = Callable[..., Any]
LONGER = "train.steps=20"


@pytest.fixture
def there(folder: Path, quintet: Quintet) -> Path:
    """The working folder with a finished run of 16 steps."""
    assert quintet("train", "run.yaml").returncode == 0
    return folder


def steps(run: Path) -> int:
    return checkpoint_steps(run / "checkpoints")[-1]


def test_a_copy_continues_in_the_copy_and_the_run_stays_as_it_is(there: Path, quintet: Quintet) -> None:
    shutil.copytree(there / "runs/tiny", there / "runs/copy")
    before = contents(there / "runs/tiny")
    done = quintet("train", "runs/copy", LONGER)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 16" in done.stdout
    assert (steps(there / "runs/copy"), contents(there / "runs/tiny") == before) == (20, True)
    found = load_run_config([there / "runs/copy/run.yaml"]).config
    assert (found.name, Path(found.runs_dir).name) == ("copy", "runs")
    assert "\nname: copy\n" in (there / "runs/copy/run.yaml").read_text()
    # The copy has the losses that the run would have had.
    assert quintet("train", "runs/tiny", LONGER).returncode == 0
    assert records(there / "runs/tiny") == records(there / "runs/copy")


def test_a_run_that_was_moved_continues_where_it_is(there: Path, quintet: Quintet) -> None:
    (there / "elsewhere").mkdir()
    (there / "runs/tiny").rename(there / "elsewhere/other")
    done = quintet("train", "elsewhere/other", LONGER)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 16" in done.stdout
    assert (steps(there / "elsewhere/other"), (there / "runs/tiny").exists()) == (20, False)


def test_from_another_folder_the_data_is_where_the_run_began(
    there: Path, quintet: Quintet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    done = quintet("train", str(there / "runs/tiny"), LONGER)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 16" in done.stdout
    assert (steps(there / "runs/tiny"), list(away.iterdir())) == (20, [])
    monkeypatch.chdir(there)  # and back again by the run file, from where it began
    assert quintet("train", "run.yaml", "train.steps=24").returncode == 0
    assert steps(there / "runs/tiny") == 24


def test_a_new_name_makes_a_new_run_from_a_run_folder(there: Path, quintet: Quintet) -> None:
    done = quintet("train", "runs/tiny", "name=new")
    assert done.returncode == 0, done.stderr
    assert "continuing" not in done.stdout
    assert steps(there / "runs/new") == 16


def test_the_run_file_of_a_run_that_was_copied_out_of_its_folder_is_a_run_file(there: Path, quintet: Quintet) -> None:
    shutil.copy(there / "runs/tiny/run.yaml", there / "run.yaml")
    done = quintet("train", "run.yaml", "name=second")
    assert done.returncode == 0, done.stderr
    assert (there / "runs/second/checkpoints").is_dir()
    assert not (there / "checkpoints").exists()


def _cut_before_the_run_file(run: Path) -> None:
    (run / "run.yaml").unlink()
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "report.html"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "samples", ignore_errors=True)


def _half_a_tokenizer(run: Path) -> None:
    _cut_before_the_run_file(run)
    for file in (run / "tokenizer").iterdir():
        file.write_bytes(file.read_bytes()[:3])


def _unfinished_names(run: Path) -> None:
    _cut_before_the_run_file(run)
    (run / "tokenizer").rename(run / ".tokenizer.0123456789abcdef")
    (run / ".run.yaml.0123456789abcdef").write_text("# The run as")
    (run / "..running.0123456789abcdef").write_text("{")  # of a lock that was being taken over


def _before_the_first_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "tokenizer")


@pytest.mark.parametrize(
    "cut", [_cut_before_the_run_file, _half_a_tokenizer, _unfinished_names, _before_the_first_checkpoint]
)
def test_a_run_that_was_killed_in_its_first_moments_begins_by_the_same_command(
    there: Path, quintet: Quintet, cut: Callable[[Path], None]
) -> None:
    whole = records(there / "runs/tiny")
    cut(there / "runs/tiny")
    done = quintet("train", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert records(there / "runs/tiny") == whole
    assert not [name for name in os.listdir(there / "runs/tiny") if name.startswith((".tokenizer", ".run", "..run"))]


def test_a_folder_with_something_else_is_left_alone(there: Path, quintet: Quintet) -> None:
    run = there / "runs/tiny"
    (run / "run.yaml").unlink()
    done = quintet("train", "run.yaml")
    assert done.returncode == 2
    assert "and no run; choose another name" in done.stderr


def test_a_closed_pipe_ends_no_training(folder: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "quintet", "train", *QUICK, "run.yaml", "train.log_every=1"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.read(read, 1)
    os.close(read)  # as `| head -1` does
    _, error = process.communicate(timeout=300)
    assert (process.returncode, steps(folder / "runs/tiny")) == (0, 16), error
    assert error.count("printing has stopped") == 1
    assert "Traceback" not in error
    assert "Exception ignored" not in error


def test_runs_lists_the_others_where_one_is_damaged(there: Path, quintet: Quintet) -> None:
    shutil.copytree(there / "runs/tiny", there / "runs/broken")
    (there / "runs/broken/run.yaml").write_bytes(b"\0" * 100)
    (there / "runs/broken/metrics.jsonl").write_bytes(b"\0" * 100)
    done = quintet("runs")
    assert done.returncode == 0, done.stderr
    assert "16/16" in done.stdout
    assert "0/?" in done.stdout
    assert "broken: its run file cannot be read" in done.stderr


def test_a_run_that_is_going_on_is_not_trained_by_a_second(there: Path, quintet: Quintet) -> None:
    before = contents(there / "runs/tiny")
    with RunLock() as lock:
        lock.take(there / "runs/tiny")
        done = quintet("train", "run.yaml", LONGER)
        assert done.returncode == 2
        assert f"error: runs/tiny: is being trained by process {os.getpid()} on " in done.stderr
    assert contents(there / "runs/tiny") == before
    assert quintet("train", "run.yaml", LONGER).returncode == 0
