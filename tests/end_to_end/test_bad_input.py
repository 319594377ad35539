"""Each mistake of a user: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.helpers import contents
from tests.processes import Forked

from quintet.cli import main


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
def test_the_newest_whole_checkpoint_stands_for_one_that_is_damaged(folder: Path, quintet, verb: str) -> None:
    quintet("train", "run.yaml")
    whole = contents(folder / "runs/tiny/checkpoints/step-000016")
    file = next((folder / "runs/tiny/checkpoints/step-000016").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-10])
    done = quintet(verb, "run.yaml" if verb == "train" else "runs/tiny")
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert f"step-000016: the checkpoint is damaged: {file.name} has " in said
    assert "; step 12 is used instead" in said
    left = {path.name for path in (folder / "runs/tiny/checkpoints").iterdir()}
    assert ("step-000016.damaged" in left) == (verb == "train")
    if verb == "train":  # which is written again, as it was
        assert "continuing from step 12" in done.stdout
        again = contents(folder / "runs/tiny/checkpoints/step-000016")
        assert {name: again[name] for name in again if name.endswith(".distcp")} == {
            name: whole[name] for name in whole if name.endswith(".distcp")
        }


def test_where_every_checkpoint_is_damaged_all_are_named(folder: Path, quintet) -> None:
    quintet("train", "run.yaml")
    for file in (folder / "runs/tiny/checkpoints").glob("step-*/*.distcp"):
        file.unlink()
    done = quintet("train", "run.yaml")
    assert done.returncode == 2
    assert done.stderr.count("the checkpoint is damaged") == len(list((folder / "runs/tiny/checkpoints").iterdir()))


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(folder: Path, quintet) -> None:
    quintet("train", "run.yaml")
    checkpoints = folder / "runs/tiny/checkpoints"
    (checkpoints / "step-000016").rename(checkpoints / "step-000099")
    (checkpoints / "step-000014").mkdir()  # half-written
    (checkpoints / "step-000014" / "__0_0.distcp").write_bytes(b"x")
    (checkpoints / "step-x").mkdir()
    done = quintet("train", "run.yaml", "checkpoint.every=2")
    assert done.returncode == 0, done.stderr
    assert "step-000099: the checkpoint is damaged: state.json is that of step 16" in " ".join(done.stdout.split())
    assert {"step-000099.damaged", "step-000014.damaged", "step-000014", "step-000016"} <= {
        path.name for path in checkpoints.iterdir()
    }


def test_a_link_to_checkpoints_that_are_gone_is_one_line(folder: Path, quintet) -> None:
    quintet("train", "run.yaml")
    checkpoints = folder / "runs/tiny/checkpoints"
    checkpoints.rename(folder / "moved")
    checkpoints.symlink_to(folder / "gone")
    line = refusal(quintet("train", "run.yaml"))
    assert f"is a link to {folder / 'gone'}, which does not exist" in line


def train_on_a_full_disk() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    main(["train", "run.yaml"])


def test_a_full_disk_keeps_the_last_checkpoint(folder: Path, quintet) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    quintet("train", "run.yaml", "train.steps=8")
    pytest.importorskip("resource")
    with Forked(train_on_a_full_disk, folder=folder) as full:
        assert "no space left to write a checkpoint; the last whole one is step 8" in refusal(full.finished())
    assert quintet("train", "run.yaml").returncode == 0


def test_a_run_name_that_holds_something_else(folder: Path, quintet) -> None:
    (folder / "runs/tiny").mkdir(parents=True)
    (folder / "runs/tiny/thesis.txt").write_text("precious")
    assert "holds thesis.txt and no run" in refusal(quintet("train", "run.yaml"))
    assert (folder / "runs/tiny/thesis.txt").read_text() == "precious"


def test_learning_that_diverges_is_stopped_with_advice(folder: Path, quintet) -> None:
    line = refusal(
        quintet("train", "run.yaml", "optimizer.lr=1e30", "schedule={kind: constant}", "train.clip_norm=null")
    )
    assert "lower optimizer.lr" in line


def test_beams_and_sampling_exclude_each_other(quintet) -> None:
    assert "--beams" in refusal(quintet("generate", "runs/tiny", "--beams", "2", "--top-k", "3"))
