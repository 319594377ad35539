"""Each tokenizer as AutoTokenizer loads it: the same ids, the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quintet.tokenize.base import Tokenizer
from quintet.tokenize.openai import TiktokenTokenizer
from quintet.tokenize.simple import ByteTokenizer, CharTokenizer
from quintet.tokenize.transformers_folder import write_for_transformers

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "naïve  café\n\n\ttabs",
    "日本語 and 🎹🎵",
    "it's 1234567 o'clock",
    "x" * 500,
    "\x00\x7f",
]


def loaded(tokenizer: Tokenizer, folder: Path) -> Any:
    folder.mkdir()
    write_for_transformers(tokenizer, folder, 128)
    return transformers.AutoTokenizer.from_pretrained(folder)


def check(tokenizer: Tokenizer, theirs: Any, texts: list[str]) -> None:
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.end_id
    assert theirs.model_max_length == 128
    for text in texts:
        ids = tokenizer.encode(text)
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == text
    assert theirs.decode([tokenizer.end_id], skip_special_tokens=True) == ""


def test_bytes(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    check(tokenizer, loaded(tokenizer, tmp_path / "it"), TEXTS)


def test_characters(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("".join(sorted(set("".join(TEXTS)))))
    check(tokenizer, loaded(tokenizer, tmp_path / "it"), TEXTS)


def test_tiktoken_with_ids_that_nobody_uses(tmp_path: Path) -> None:
    merges = [b"he", b"ll", b"hell", b"hello", b" w", b" wo", "é".encode(), b"12", b"34"]
    ranks = {bytes([value]): value for value in range(256)} | {piece: 256 + rank for rank, piece in enumerate(merges)}
    special = {"<|endoftext|>": len(ranks) + 3, "<|other|>": len(ranks) + 1}
    tokenizer = TiktokenTokenizer("test", r"\s?\p{L}+|\s?\p{N}+|\s?[^\s\p{L}\p{N}]+|\s+", ranks, special)
    theirs = loaded(tokenizer, tmp_path / "it")
    check(tokenizer, theirs, [*TEXTS, "hello world, hell 1234"])
    assert theirs.convert_tokens_to_ids("<|other|>") == special["<|other|>"]


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", pytest.param("o200k_base", marks=pytest.mark.slow)])
def test_published_encodings(name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.tokenize.openai import tiktoken_encoding

    cache = shared / "tokenizers/tiktoken"
    before = sorted(cache.iterdir())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    tokenizer = tiktoken_encoding(name)
    check(tokenizer, loaded(tokenizer, tmp_path / "it"), TEXTS)
    assert sorted(cache.iterdir()) == before, "a copy of the ranks was left in the user's cache"
