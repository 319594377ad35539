"""A small run on text that the test makes, driven through the command line."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import WORDS, Command, write_corpus
from tests.processes import quintet_apart

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


@pytest.fixture
def quintet_process(folder: Path) -> Run:
    """Run the command in ``folder`` as a process of its own."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        with quintet_apart(folder, *arguments) as process:
            return process.finished()

    return call
