"""A small run on text that the test makes, driven through the command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import WORDS, write_corpus

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

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bits_of_a_byte() -> float:
    """Entropy of the corpus: only the choice of the next word is left to chance."""
    return math.log2(len(WORDS)) / (len(" ".join(WORDS).encode()) / len(WORDS) + 1 / len(WORDS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with ``run.yaml`` and a corpus of some thousand words."""
    write_corpus(tmp_path / "corpus", files=12)
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    return tmp_path


@pytest.fixture
def quintet(folder: Path) -> Command:
    """Run the command in ``folder`` as a process of its own."""

    def call(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "quintet", *arguments],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call
