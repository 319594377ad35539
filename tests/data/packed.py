"""Documents of a few tokens, stored and packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from pydantic import TypeAdapter
from tokenizers import decoders, models, pre_tokenizers

from quintet.config.packing import PackingConfig
from quintet.data.manifest import Manifest
from quintet.data.packing import Packed, pack
from quintet.data.shards import write_shard
from quintet.data.split import whole
from quintet.data.store import TokenStore, token_dtype
from quintet.tokenize import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz#"
BOS, EOS = 1, 2


def words() -> HuggingFaceTokenizer:
    """Letters between spaces as ids from 3 on, with a first and a last id of texts."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS} | {letter: 3 + rank for rank, letter in enumerate(LETTERS)}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["<s>", "</s>"])
    from quintet.tokenize.tokenizer_files import ChatRules

    return HuggingFaceTokenizer(library.to_str(), "</s>", ChatRules(tokens={"bos_token": "<s>"}))


def stored(folder: Path, documents: list[Any], tokenizer: Tokenizer) -> TokenStore:
    folder.mkdir(parents=True, exist_ok=True)

    class WorkUnit:
        place = "there"

        def documents(self, report: Any, tokenizer: Any) -> Iterator[Any]:
            return iter(documents)

    shard = write_shard(folder, 0, WorkUnit(), tokenizer).shard  # pyright: ignore[reportArgumentType]
    counts = (shard.tokens, shard.documents, shard.bytes)
    dtype = token_dtype(tokenizer.vocab_size).str
    manifest = Manifest(
        "key", "test", tokenizer.fingerprint, {}, tokenizer.vocab_size, dtype, *counts, {}, 0, (), (shard,)
    )
    manifest.write(folder)
    return TokenStore.open(folder)


def config(**keys: Any) -> Any:
    return TypeAdapter(PackingConfig).validate_python(keys)


def packed(folder: Path, documents: list[Any], length: int, tokenizer: Tokenizer | None = None, **keys: Any) -> Packed:
    tokenizer = tokenizer or words()
    store = stored(folder / "store", documents, tokenizer)
    return pack(store, whole(store).ranges, config(**keys), length, tokenizer, folder / "cache")


def shown(samples: Packed, tokenizer: Tokenizer | None = None) -> list[str]:
    """Samples as letters, with [ and ] for the first and the last id."""
    names = {BOS: "[", EOS: "]"} | {3 + rank: letter for rank, letter in enumerate(LETTERS)}
    return ["".join(names[int(token)] for token in samples.sample(row).ids) for row in range(samples.count)]


def metaspace() -> HuggingFaceTokenizer:
    """A tokenizer of words begun by ▁ and their letters, as SentencePiece makes them."""
    words = ["<unk>", "</s>", "▁", "▁token", "iz", "er", "s", "▁cut", "▁here", *"abcdehiknorstuz日本,\n"]
    library = tokenizers.Tokenizer(models.Unigram([(word, -float(len(words) / len(word))) for word in words], 0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return HuggingFaceTokenizer(library.to_str(), "</s>")
