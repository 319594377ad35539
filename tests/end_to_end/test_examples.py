"""Every example trains on the data that one command makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers import QUICK, REPOSITORY

from quintet.cli import main

EXAMPLES = sorted(
    file.relative_to(REPOSITORY)
    for pattern in ("examples/*.yaml", "examples/*/*.yaml")
    for file in REPOSITORY.glob(pattern)
)
# Some steps are enough to see that an example trains; the native ones are in sizes that take minutes.
SMALL = ("model.layers=2", "model.width=64", "model.attention.heads=2")
FEW = ("train.steps=3", "train.batch_size=4", "evaluate.samples=4", "schedule.warmup_steps=1")
OVERRIDES = {
    "cluster": (
        *SMALL, *FEW, "train.tokens=null", "train.micro_batch_size=2", "tokenizer.vocab_size=512", "parallel.kind=none",
        "data.sequence_length=128", "model.feedforward.width=128", "train.precision=fp32",
    ),
    "finetune": (*FEW, "train.micro_batch_size=2", "data.sequence_length=128", "model.name_or_path=data/tiny-llama"),
    "piano_tasks": (*SMALL, *FEW, "data.sequence_length=176", "sample.max_tokens=16"),
    "piano": (*SMALL, *FEW, "sample.max_tokens=16"),
    "piano_performances": (*SMALL, *FEW, "sample.max_tokens=16"),
    "measured": (*SMALL, *FEW),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples of a fresh checkout, and the data that `make_data.py` makes of what is installed."""
    for library in ("transformers", "datasets", "music21", "symusic"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run([sys.executable, "examples/make_data.py"], cwd=folder, env=environment, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=[str(file.with_suffix("")) for file in EXAMPLES])
def test_an_example_trains(
    checkout: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("WANDB_MODE", "offline")
    native = file.parent.name == "examples"
    overrides = OVERRIDES.get(file.stem, (*SMALL, *FEW)) if native else ()
    if file.stem == "piano_tasks":  # it tunes what another example trained
        with pytest.raises(SystemExit):
            main(["train", *QUICK, "examples/piano.yaml", *OVERRIDES["piano"]])
    with pytest.raises(SystemExit) as left:
        main(["train", *QUICK, str(file), *overrides])
    assert left.value.code == 0, capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=[str(file.with_suffix("")) for file in EXAMPLES])
def test_an_example_is_right_as_it_stands(
    checkout: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    with pytest.raises(SystemExit) as left:
        main(["check", str(file)])
    assert left.value.code == 0, capfd.readouterr().err
