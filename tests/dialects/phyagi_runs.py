"""Small PhyAGI files and their data, for the tests of the dialect."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dialects.conftest import Made, Make
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from quintet.errors import UserError
from quintet.model.norm import LayerNorm
from quintet.train.schedule import learning_rate

DIALECT = "phyagi"
VOCAB = 40
EXAMPLES = Path(__file__).resolve().parents[2] / "examples/phyagi"
DS = "training_args.ds_config"
MIXER = "model.architecture.mixer"
MODULE = "training_args.lightning_module"
PL = "training_args.trainer"


def write_tokens(file: Path, count: int = 1000, seed: int = 3) -> Path:
    """Write ids from 6 to 39; the ids below are free for tests to give a meaning."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.random.default_rng(seed).integers(6, VOCAB, count).astype("uint16"))
    return file


def write_tokenizer(file: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{id}": id for id in range(1, VOCAB)} | {"</s>": 0}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file.write_bytes(pickle.dumps(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder: Path) -> Path:
    """Write two corpora, the first with a tokenizer and tokens to validate on."""
    write_tokens(folder / "stories/train.npy")
    write_tokens(folder / "stories/validation.npy", 200, seed=4)
    write_tokenizer(folder / "stories/tokenizer.pkl")
    write_tokens(folder / "code/train.npy", 500, seed=5)
    return folder


@pytest.fixture
def base(data: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(data, tmp_path / "cache")


def small_file(data: Path, cache: Path) -> dict[str, Any]:
    """Return a complete file that trains in a moment."""
    return {
        "output_dir": "out/tiny",
        "dataset": [
            {
                "train_file": str(data / "stories/train.npy"),
                "validation_file": str(data / "stories/validation.npy"),
                "seq_len": 16,
            }
        ],
        "model": {
            "model_type": "mixformer-sequential",
            "vocab_size": VOCAB,
            "n_positions": 16,
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "pad_vocab_size_multiple": 1,
        },
        "training_args": {
            "ds_config": {
                "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
                "train_batch_size": 4,
                "train_micro_batch_size_per_gpu": 4,
            },
            "max_steps": 4,
            "logging_steps": 1,
        },
        "quintet": {"data": {"cache_dir": str(cache)}},
    }


def unbuilt(made: Made) -> str:
    with pytest.raises(UserError) as error:
        made.run  # noqa: B018
    return "\n".join(error.value.problems)


def rates(made: Made, steps: int = 4) -> list[float]:
    config = made.config
    return [learning_rate(config.schedule, config.optimizer.lr, step, steps) for step in range(1, steps + 1)]


def huggingface(make: Make, arguments: Mapping[str, Any] | None = None, **others: Any) -> Made:
    """The base file with the training arguments of the transformers library."""
    few = {"per_device_train_batch_size": 4, "learning_rate": 0.01, "max_steps": 4, "logging_steps": 1}
    return make({"training_args": {**few, **(arguments or {})}, **others})


def lightning(make: Make, trainer: Mapping[str, Any] | None = None, **arguments: Any) -> Made:
    """The base file with the training arguments of Lightning; ``trainer`` are those of its Trainer."""
    adamw = {"type": "adamw", "params": {"lr": 0.01}}
    few = {"train_micro_batch_size_per_gpu": 4, "lightning_module": {"optimizer": adamw}}
    return make({"training_args": {**few, **arguments, "trainer": {"max_steps": 4, **(trainer or {})}}})


def scheduled(make: Make, name: str, parameters: Mapping[str, Any]) -> Made:
    module = {"optimizer": {"type": "adamw"}, "scheduler": {"type": name, "params": dict(parameters)}}
    return lightning(make, lightning_module=module)


def optimized(make: Make, name: str, **parameters: Any) -> torch.optim.Optimizer:
    return lightning(make, lightning_module={"optimizer": {"type": name, "params": parameters}}).optimizer


def norms(made: Made, kind: type[nn.Module] = LayerNorm) -> list[nn.Module]:
    """Return the norms of one class in the order of the model."""
    return made.modules(kind)


def says(made: Made, *ids: int) -> torch.Tensor:
    """Return the logits of the built model for one sample, fp32 [tokens, ids]."""
    model = made.model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


def tokens(path: Path) -> np.ndarray:
    return np.load(path).astype(np.int64)


def every_window(made: Made) -> np.ndarray:
    """Return the inputs of all batches of the first epoch, integers [samples, sequence], sorted."""
    count = made.run.data.epoch_samples
    steps = -(-count // made.config.batch.samples)
    rows = np.concatenate([made.batch(step).inputs for step in range(steps)])[:count]
    return rows[np.lexsort(rows.T[::-1])]
