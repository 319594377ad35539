"""Small files of STLM, their texts and the models of their runs, for the tests of the dialect."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests import helpers
from tests.checkpoints import tiny_llama, word_tokenizer
from tests.dialects.conftest import Made, Make
from torch import nn

from quintet.data.prepare import build_tokenizer_of
from quintet.train.model import build_run_model
from quintet.train.schedule import learning_rate

_TOKENIZERS: dict[str, Any] = {}
EXPERIMENT = "belongs to an experiment"
_DRAW = random.Random(1)
WORDS = [
    *("the", "a", "cat", "dog", "saw", "chased", "1986", "big", "and", "naïve", "ñandú"),
    *("".join(_DRAW.choices("abcdefghijklmnop", k=_DRAW.randint(2, 7))) for _ in range(150)),
]


HF = {"model.core_model_type": "hf_core", "model.embedding_model_type": "hf_embedder", "model.lm_head_type": "hf_head"}
BYTES = {"model.embedding_model_type": "byte_level", "model.lm_head_type": "byte_level"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, and a cache that all tests of the module share."""
    return write_corpora(tmp_path_factory.mktemp("stlm"))


def write_texts(file: Path, seed: int, texts: int = 200, words: list[str] = WORDS) -> Path:
    draw = random.Random(seed)
    lines = (" ".join(draw.choice(words) for _ in range(40)) for _ in range(texts))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    return file


def write_corpora(folder: Path) -> Path:
    """Texts of two vocabularies."""
    write_texts(folder / "texts.jsonl", 5)
    write_texts(folder / "other.jsonl", 6, words=["zebra", "yak", "xylophone", "quartz"])
    return folder


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    """A tiny Llama as Hugging Face stores one, with a tokenizer of words."""
    import transformers

    folder = place / "llama"
    tiny_llama(len(WORDS) + 2, bos_token_id=1, eos_token_id=1).save_pretrained(folder)
    words = word_tokenizer({"<unk>": 0, "</s>": 1} | {word: i for i, word in enumerate(WORDS, start=2)}, "</s>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def base(place: Path) -> dict[str, Any]:
    return small_file(place)


def small_file(place: Path) -> dict[str, Any]:
    """A complete file that trains in a moment."""
    return {
        "model": {
            "core_model_type": "generic",
            "num_layers": 2,
            "hidden_dim": 16,
            "context_window": 16,
            "vocab_size": 300,
            "tokenizer_type": "bpe",
            "positional_encoding_type": "rope",
            "ffn": {"ffn_type": "generic", "ffn_dim": 24},
            "attn": {"attn_type": "causal", "num_kv_heads": 2},
        },
        "trainer": {
            "dataset": str(place / "texts.jsonl"),
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_iters": 4,
            "eval": {"dataset_loss_eval_iters": 2, "text_modeling_eval": False},
        },
        "quintet": {"data": {"cache_dir": str(place / "cache")}, "train": {"device": "cpu", "precision": "fp32"}},
    }


@pytest.fixture
def make_hf(make: Make, checkpoint: Path) -> Make:
    """``make`` with the tiny Llama as the model."""
    return lambda changes=None, **more: make(
        HF | {"model.model_string": str(checkpoint)} | (changes or {}), without=["model.tokenizer_type"], **more
    )


def refused(make: Make, changes: dict[str, Any], **more: Any) -> str:
    """The problems of the file with ``changes``, when it is read or its run is built, a line each."""
    return helpers.refused(lambda: make(changes, **more).run)


def own(made: Made) -> Any:
    """The model of the run, without what a run measures before it starts; typed as Any, because the tests name parts of
    its class. A tokenizer is trained once."""
    if "own" not in vars(made):
        config = made.config
        key = json.dumps([config.tokenizer.model_dump(), str(config.data.sources)])
        if key not in _TOKENIZERS:
            _TOKENIZERS[key] = build_tokenizer_of(config)
        vars(made)["own"] = build_run_model(config, _TOKENIZERS[key])
    return vars(made)["own"]


def shapes(made: Made) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in own(made).named_parameters()}


def dropouts(made: Made) -> dict[str, float]:
    """Rate of every dropout that is not 0, by name."""
    found = {name: module.p for name, module in own(made).named_modules() if isinstance(module, nn.Dropout)}
    return {name: rate for name, rate in found.items() if rate}


def only_in(more: Made, fewer: Made) -> set[str]:
    """Names of the parameters that only the first model has."""
    return {name.removeprefix("blocks.") for name in shapes(more).keys() - shapes(fewer).keys()}


def rates(made: Made) -> list[float]:
    """The learning rate of every step."""
    run = made.config
    steps = run.train.steps
    assert steps is not None
    return [learning_rate(run.schedule, run.optimizer.lr, step, steps) for step in range(1, steps + 1)]
