"""Small files of TMRC and their dataset, for the tests of the dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

VOCAB = 20
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/tmrc/gpt.yaml"


def write_dataset(folder: Path, documents: int = 60, tokenizer: str = "t5-base") -> Path:
    """A tokenized dataset as tatm writes one: documents of 5 to 30 ids that end with id 1, then zeros."""
    draw = np.random.default_rng(3)
    ids = [np.append(draw.integers(2, VOCAB, draw.integers(5, 30)), 1) for _ in range(documents)]
    folder.mkdir()
    (folder / "tok_0.bin").write_bytes(np.concatenate([*ids, np.zeros(50)]).astype("uint16").tobytes())
    info = {"tokenizer": tokenizer, "file_prefix": str(folder / "tok"), "dtype": "uint16"}
    (folder / "metadata.json").write_text(json.dumps({"name": "words", "tokenized_info": info}))
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "</s>": 1} | {f"w{id}": id for id in range(2, VOCAB)}, unk_token="w2")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>"])
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tatm") / "words")


@pytest.fixture
def base(dataset: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(dataset, tmp_path / "cache")


def small_file(dataset: Path, cache: Path) -> dict[str, Any]:
    """A complete file that trains in a moment."""
    return {
        "datasets": {"name": "words", "path": str(dataset), "tokenizer_used": "t5-base"},
        "model": {
            "name": "gpt",
            "n_head": 2,
            "d_model": 16,
            "n_layer": 1,
            "context_length": 16,
            "autocast_precision": "float32",
        },
        "tokenizer": {"name": "t5-base", "vocab_size": 24},
        "training": {"train_steps": 4, "batch_size": 4, "artifacts_path": "artifacts", "log_interval": 2},
        "quintet": {"data": {"cache_dir": str(cache)}},
    }
