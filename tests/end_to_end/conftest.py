"""A small run on text that the test makes, driven through the command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.helpers import QUICK, WORDS, Command, write_corpus

RUN_FILE = """
name: tiny
data:
  sources: [{kind: text, path: corpus}]
  validation: 0.1
  sequence_length: 32
  cache_dir: cache
tokenizer: {kind: byte}
model: {layers: 2, width: 32, embedding_dropout: 0.1, residual_dropout: 0.1, attention: {heads: 2, dropout: 0.1}}
schedule: {kind: cosine, warmup_steps: 4}
train: {steps: 16, batch_size: 8, micro_batch_size: 4, precision: fp32, log_every: 4}
evaluate: {every: 8, samples: 16}
sample: {prompts: ["the "], max_tokens: 8}
checkpoint: {every: 4}
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bits_of_a_byte() -> float:
    """Entropy of the corpus: only the choice of the next word is left to chance."""
    return math.log2(len(WORDS)) / (len(" ".join(WORDS).encode()) / len(WORDS) + 1 / len(WORDS))


def write_run(folder: Path) -> Path:
    """Write ``run.yaml`` and a corpus of some thousand words to a folder and return it."""
    write_corpus(folder / "corpus", files=12)
    (folder / "run.yaml").write_text(RUN_FILE)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with ``run.yaml`` and its corpus."""
    return write_run(tmp_path)


@pytest.fixture
def quintet(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in ``folder``, in this process: to start Python and PyTorch takes longer than most runs here."""
    monkeypatch.chdir(folder)
    return lambda *arguments: subprocess.CompletedProcess(arguments, *command(*arguments))


def run_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder`` as a user does: as a process of its own; a training with the options QUICK."""
    verb, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "quintet", verb, *(QUICK if verb == "train" else ()), *rest],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def quintet_process(folder: Path) -> Run:
    """Run the command in ``folder`` as a process of its own."""
    return partial(run_process, folder)
