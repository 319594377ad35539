"""The command in a process that lacks what Windows lacks (`like_windows.py`), from a check to an export."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells which files are open")
LIKE_WINDOWS = Path(__file__).with_name("like_windows.py")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def windows(folder: Path) -> Command:
    """Run `quintet` in ``folder`` as it would run on Windows, and press Ctrl-C once the file ``stop_at`` is there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "USERNAME": "tester"}

    def call(*arguments: str, stop_at: str = "", given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, LIKE_WINDOWS, folder, *arguments],
            cwd=folder,
            env=environment | ({"STOP_AT": stop_at} if stop_at else {}),
            input=given,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return call


BROKEN = {
    "import fcntl": "No module named 'fcntl'",
    "import resource": "No module named 'resource'",
    "import os; os.fork()": "no attribute 'fork'",
    "import os; os.sched_getaffinity(0)": "no attribute 'sched_getaffinity'",
    "file = open('a', 'w'); import os; os.replace('a', 'b')": "being used",
    "file = open('a', 'w'); import os; open('b', 'w').close(); os.replace('b', 'a')": "being used",
    "file = open('a', 'w'); import os; os.remove('a')": "being used",
    "import os; os.mkdir('a'); file = open('a/b', 'w'); os.rename('a', 'c')": "being used",
    "import os; os.mkdir('a'); file = open('a/b', 'w'); import shutil; shutil.rmtree('a')": "being used",
    "import os; os.mkdir('a'); os.mkdir('b'); os.replace('a', 'b')": "a folder is there",
    "open('a:b', 'w')": "syntax is incorrect",
    "open('nul.txt', 'w')": "syntax is incorrect",
    "import os; os.mkdir('a.')": "syntax is incorrect",
    "print('→')": "can't encode character",
}


@pytest.mark.parametrize("code", BROKEN)
def test_what_windows_refuses_is_refused_here(tmp_path: Path, code: str) -> None:
    begin = f"import like_windows as like; like.take_unix_away(); like.guard_files(like.Path()); {code}"
    environment = os.environ | {"PYTHONPATH": str(LIKE_WINDOWS.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", begin], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert BROKEN[code] in ended.stderr


def test_checking_and_preparing(folder: Path, windows: Command) -> None:
    (folder / "corpus" / "umlaut.txt").write_text("naïve 猫 → cat\n" * 50, encoding="utf-8")
    checked = windows("check", "run.yaml")
    assert checked.returncode == 0, checked.stderr
    refused = windows("check", "run.yaml", "name='wrong→name:'")
    assert refused.returncode == 2
    assert "wrong→name:" in refused.stderr  # in UTF-8, though the pipe has another code page
    prepared = windows("prepare", "run.yaml")
    assert prepared.returncode == 0, prepared.stderr
    left = [file.name for file in (folder / "cache").rglob(".*")]
    assert not left, "locks and unfinished files are gone"


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_goes_on(folder: Path, windows: Command) -> None:
    settings = ("run.yaml", "train.steps=120", "evaluate.every=40", "checkpoint.every=4", "checkpoint.keep=1")
    whole = windows("train", *settings, "name=whole")
    assert whole.returncode == 0, whole.stderr
    assert "finished: 120 steps" in whole.stdout
    first = folder / "runs/stopped/checkpoints/step-000004"
    stopped = windows("train", *settings, "name=stopped", stop_at=str(first))
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command continues" in stopped.stdout
    continued = windows("train", *settings, "name=stopped")
    assert continued.returncode == 0, continued.stderr
    assert "continuing from step" in continued.stdout
    assert records(folder / "runs/stopped") == records(folder / "runs/whole")


@pytest.mark.slow
def test_what_is_done_with_a_run(folder: Path, windows: Command) -> None:
    trained = windows("train", "run.yaml", "train.steps=20")
    assert trained.returncode == 0, trained.stderr
    written = windows("generate", "runs/tiny", "--prompt", "猫 →", "--max-tokens", "6", "--temperature", "0")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("猫 →")
    evaluated = windows("evaluate", "runs/tiny", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert math.isfinite(json.loads(evaluated.stdout)["validation/loss"])
    for call in (
        ("report", "runs/tiny"),
        ("runs",),
        ("show-batch", "run.yaml"),
        ("export", "runs/tiny", "exported", "--to", "huggingface"),
    ):
        ended = windows(*call)
        assert ended.returncode == 0, (call, ended.stderr)
    assert (folder / "exported/model.safetensors").is_file()
    planned = windows("plan", "run.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "not simulated: this system does not report its memory" in planned.stdout


@pytest.mark.slow
def test_stores_and_other_forms_of_the_data(folder: Path, windows: Command) -> None:
    (folder / "corpus" / "twice.txt").write_text((folder / "corpus" / "00.txt").read_text())
    bpe = "tokenizer={kind: bpe, vocab_size: 300}"
    for form in ("store", "huggingface", "npy", "tatm"):
        written = windows("prepare", "run.yaml", bpe, "--output", form, "--format", form)
        assert written.returncode == 0, (form, written.stderr)
    for kind in ("exact", "minhash"):
        cleaned = windows("prepare", "run.yaml", f"data.cleaning.deduplicate={{kind: {kind}}}")
        assert cleaned.returncode == 0, cleaned.stderr
        assert "dropped: 1 of 13 documents" in cleaned.stderr + cleaned.stdout
    packed = windows("prepare", "run.yaml", "data.packing={kind: best_fit}")
    assert packed.returncode == 0, packed.stderr


WRITES_ROWS = """
import like_windows as like
like.take_unix_away()
like.guard_files(like.Path())
from quintet.config.load import load_run_config
from quintet.data.formats import write_samples
from quintet.data.prepare import prepare
write_samples(prepare(load_run_config(["run.yaml"]).config), like.Path("rows"), -100)
"""


@pytest.mark.slow
def test_rows_are_written_beside_a_file_that_is_mapped(folder: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(LIKE_WINDOWS.parent), os.environ.get("PYTHONPATH", "")])
    }
    ended = subprocess.run(
        [sys.executable, "-c", WRITES_ROWS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert not list((folder / "rows").glob(".*"))
