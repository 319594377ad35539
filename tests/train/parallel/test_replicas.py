"""Processes that hold the same weights hold them bit for bit, also where something is drawn in the optimizer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.train.parallel.conftest import train_several

pytestmark = pytest.mark.timeout(900)
WAYS = {
    "ddp": ["parallel.kind=ddp"],
    "hsdp": ["parallel.kind=hsdp", "parallel.shard_size=1"],
}
NARROW = {"kind": "adamw", "lr": 1e-2, "state_precision": "bf16"}


def digests(folder: Path, name: str) -> list[str]:
    """The digest of weights and optimizer state in each process at the end of a run."""
    return json.loads((folder / "runs" / name / "digests.json").read_text("utf-8"))


def narrow_file(run_file: Callable[..., Path]) -> Path:
    return run_file(
        train={"steps": 30, "micro_batch_size": 2},
        optimizer=NARROW,
        evaluate={"every": None},
        checkpoint={"every": 15, "keep": None},
        sample={"prompts": []},
    )


@pytest.mark.slow
def test_replicas_stay_equal_and_a_resume_has_the_same_bits(run_file: Callable[..., Path], tmp_path: Path) -> None:
    file = narrow_file(run_file)
    train_several(2, file, WAYS)
    for way in WAYS:
        one, other = digests(tmp_path, way)
        assert one == other, way
        cut_at(tmp_path / "runs", way, f"{way}-again", 15)
    train_several(2, file, {f"{way}-again": overrides for way, overrides in WAYS.items()})
    for way in WAYS:
        assert digests(tmp_path, f"{way}-again") == digests(tmp_path, way), way


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_replicas_of_deepspeed_stay_equal(run_file: Callable[..., Path], tmp_path: Path) -> None:
    train_several(2, narrow_file(run_file), {"zero0": ["parallel={kind: deepspeed}"]}, gloo=True)
    one, other = digests(tmp_path, "zero0")
    assert one == other


def cut_at(runs: Path, name: str, copy: str, step: int) -> None:
    """A copy of a run as it was after ``step``."""
    shutil.copytree(runs / name, runs / copy)
    for later in (runs / copy / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    text = (runs / copy / "run.yaml").read_text("utf-8")
    (runs / copy / "run.yaml").write_text(re.sub("^name: .*$", f"name: {copy}", text, flags=re.MULTILINE), "utf-8")
