"""Each mistake of a user: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal, after checking that it is one."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.widht=64", "command line: model.widht: unknown key.*did you mean 'width'"),
        ("train.steps=many", "train.steps: .*many"),
        ("train.batch_size=0", "train.batch_size: .*at least 1"),
        ("optimizer.kind=adam", "optimizer.*adam"),
        ("data.sources[0].path=nowhere", "nowhere"),
        ("model.vocab_size=100", "model.vocab_size: 100 rows are fewer than the tokenizer's 257 ids"),
        ("data.sequence_length=1000000", "fewer than the 1,000,001 of one sample"),
        ("train.device=cuda", "train.device: this machine has no cuda device"),
        ("train.precision=fp16", "train.precision: fp16 is hundreds of times slower"),
        ("train.accumulation=3", "do not make a batch of 8 samples"),
    ],
    ids=lambda text: text.split("=")[0],
)
def test_a_wrong_setting(quintet, override: str, expected: str) -> None:
    import re

    import torch

    if override == "train.device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the device that the test wants to be absent")
    assert re.search(expected, refusal(quintet("train", "run.yaml", override)))


def test_a_missing_run_file(quintet_process) -> None:
    assert "absent.yaml" in refusal(quintet_process("train", "absent.yaml"))


def test_a_missing_run(quintet) -> None:
    assert "no run there" in refusal(quintet("generate", "runs/absent"))


def test_an_empty_corpus(folder: Path, quintet) -> None:
    for file in (folder / "corpus").iterdir():
        file.write_text("")
    assert "holds no text" in refusal(quintet("train", "run.yaml"))


def test_a_store_of_another_tokenizer(folder: Path, quintet) -> None:
    quintet("prepare", "run.yaml", "--output", "store")
    other = ("data.sources=[{kind: store, path: store}]", "tokenizer={kind: char}")
    assert "another `tokenizer`" in refusal(quintet("train", "run.yaml", *other))


def test_a_truncated_store(folder: Path, quintet) -> None:
    quintet("prepare", "run.yaml", "--output", "store")
    shard = max((folder / "store").glob("shard-*"), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-4])
    assert shard.name in refusal(quintet("train", "run.yaml", "data.sources=[{kind: store, path: store}]"))


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate"])
def test_a_truncated_checkpoint(folder: Path, quintet, verb: str) -> None:
    quintet("train", "run.yaml")
    file = next((folder / "runs/tiny/checkpoints/step-000016").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-10])
    line = refusal(quintet(verb, "run.yaml" if verb == "train" else "runs/tiny"))
    assert "step-000016: the checkpoint is damaged" in line
    assert "move it away to use step 12" in line
    file.parent.rename(folder / "damaged")  # what the line says
    assert quintet("train", "run.yaml").returncode == 0


def test_a_full_disk_keeps_the_last_checkpoint(folder: Path, quintet) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    quintet("train", "run.yaml", "train.steps=8")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        "from quintet.cli import main; main(sys.argv[1:])"
    )
    pytest.importorskip("resource")
    full = subprocess.run(
        [sys.executable, "-c", program, "train", "run.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "no space left to write a checkpoint; the last whole one is step 8" in refusal(full)
    assert quintet("train", "run.yaml").returncode == 0


def test_a_run_name_that_holds_something_else(folder: Path, quintet) -> None:
    (folder / "runs/tiny").mkdir(parents=True)
    (folder / "runs/tiny/thesis.txt").write_text("precious")
    assert "is not empty and holds no run" in refusal(quintet("train", "run.yaml"))
    assert (folder / "runs/tiny/thesis.txt").read_text() == "precious"


def test_learning_that_diverges_is_stopped_with_advice(folder: Path, quintet) -> None:
    line = refusal(
        quintet("train", "run.yaml", "optimizer.lr=1e30", "schedule={kind: constant}", "train.clip_norm=null")
    )
    assert "lower optimizer.lr" in line


def test_beams_and_sampling_exclude_each_other(quintet) -> None:
    assert "--beams" in refusal(quintet("generate", "runs/tiny", "--beams", "2", "--top-k", "3"))
