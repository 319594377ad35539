"""Small VectorLM files with their data and model, for the tests of the dialect."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import tiny_llama, word_tokenizer
from tests.dialects.conftest import Made, Make

from quintet.data.prepare import prepare
from quintet.errors import UserError

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("peft")

BOS, EOS, NONE = 1, 2, -100
# The words of the worked examples and their ids.
WORDS = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "#": 3, "Excerpt:": 4, "Note:": 5}
WORDS |= {letter: 10 + index for index, letter in enumerate("abcdefghijklmno")}
WORDS |= {letter: 25 + index for index, letter in enumerate("pqrstuvwxyz")}
ALPHABET = list("abcdefgh")


def write_model(folder: Path, seed: int = 0, positions: int = 64) -> Path:
    """Write a llama of one layer with the tokenizer of the worked examples."""
    model = tiny_llama(40, max_position_embeddings=positions, bos_token_id=BOS, eos_token_id=EOS)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words = word_tokenizer(WORDS, "<s>", "</s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def write_rows(folder: Path, rows: list[tuple[list[int], list[int]]], split: str = "train") -> Path:
    """Write a processed dataset as VectorLM does."""
    columns = {
        "id": list(range(len(rows))),
        "input_ids": [ids for ids, _ in rows],
        "labels": [labels for _, labels in rows],
        "attention_mask": [[1] * len(ids) for ids, _ in rows],
    }
    datasets.Dataset.from_dict(columns, split=split).save_to_disk(folder)
    return folder


def write_texts(folder: Path, **splits: list[str]) -> Path:
    """Write a dataset dictionary with columns of text."""
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts, "other": texts[::-1]}) for name, texts in splits.items()}
    ).save_to_disk(folder)
    return folder


def some_rows(count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return rows of 6 to 12 ids: the first two have no loss, the last is an EOS."""
    draw = np.random.default_rng(seed)
    rows = [[BOS, *draw.integers(10, 36, draw.integers(4, 11)).tolist(), EOS] for _ in range(count)]
    return [(ids, [NONE, NONE, *ids[2:]]) for ids in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a processed dataset to train on, one to evaluate on, and texts."""
    return write_world(tmp_path_factory.mktemp("vectorlm"))


def write_world(folder: Path) -> Path:
    """A model, a processed dataset to train on, one to evaluate on, and texts."""
    datasets.disable_progress_bars()
    write_model(folder / "model")
    write_rows(folder / "train", some_rows(32, seed=1))
    write_rows(folder / "eval", some_rows(8, seed=2), split="test")
    write_texts(folder / "texts", train=[" ".join(ALPHABET), "x y"], test=["p q r s"])
    return folder


@pytest.fixture
def base(world: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(world, tmp_path / "cache")


def small_file(world: Path, cache: Path) -> dict[str, Any]:
    """Return a complete file that trains in a moment."""
    return {
        "model": str(world / "model"),
        "enable_wandb_logging": False,
        "train_parameters": {
            "output_dir": "out/mine",
            "max_seq_len": 12,
            "epochs": 1,
            "seed": 11,
            "sharding_strategy": "NO_SHARD",
            "use_mp": False,
            "use_activation_checkpointing": False,
            "use_flash_attention": False,
            "max_grad_norm": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-5},
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.25,
            "checkpointing_enabled": True,
            "logging_steps": 2,
            "save_frequency": 0.25,
        },
        "dataset": {
            "ignore_index": -100,
            "eval_bs": 4,
            "train_bs": 4,
            "train_ds": str(world / "train"),
            "eval_ds": str(world / "eval"),
        },
        "quintet": {"data": {"cache_dir": str(cache)}},
    }


T, P = "train_parameters", "dataset_preprocess"


@pytest.fixture
def processed(make: Make, world: Path, tmp_path: Path) -> Callable[..., list[tuple[list[int], list[int]]]]:
    """``processed(texts, packing_type="full")``: the rows of ids and labels that preprocessing makes from texts."""
    count = 0

    def rows(texts: list[str], length: int = 6, **keys: Any) -> list[tuple[list[int], list[int]]]:
        nonlocal count
        count += 1
        folder = write_texts(tmp_path / f"texts{count}", train=texts)
        changes = {P: {"load_path": str(folder), "split": "train", **keys}, f"{T}.max_seq_len": length}
        return rows_of(make(changes, purpose="prepare"))

    return rows


def rows_of(made: Made) -> list[tuple[list[int], list[int]]]:
    """Return the training samples, in order, as rows of ids and labels."""
    with chdir(made.file.parent):
        streams = prepare(made.config).train.source_samples
    samples = [stream.sample(index) for stream in streams for index in range(stream.count)]
    return [(sample.ids.tolist(), _labels(sample)) for sample in samples]


def _labels(sample: Any) -> list[int]:
    mask = True if sample.loss_mask is None else sample.loss_mask
    return np.where(mask, sample.ids.astype(int), NONE).tolist()


def refused(make: Make, changes: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as error:
        _ = make(changes, **more).run
    return "\n".join(error.value.problems)


def raw(world: Path, **keys: Any) -> dict[str, Any]:
    return {"load_path": str(world / "texts"), "split": "train", **keys}


def without_processed(make: Make, world: Path, changes: dict[str, Any] | None = None, **keys: Any) -> Made:
    """Make a run that processes the texts on the fly and holds nothing out."""
    changes = {P: raw(world, **keys), "quintet.data.validation": 0, **(changes or {})}
    return make(changes, without=["dataset.train_ds", "dataset.eval_ds"])


def texts_of(made: Made) -> list[list[int]]:
    return [ids for ids, _ in rows_of(made)]


LORA = {"task_type": "CAUSAL_LM", "inference_mode": False, "r": 2, "lora_alpha": 6, "lora_dropout": 0.25}
