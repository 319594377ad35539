"""Properties of each kind of tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.config.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    HuggingFaceTokenizerConfig,
    TiktokenTokenizerConfig,
    TokenizerConfig,
)
from quintet.errors import UserError
from quintet.tokenize import TextStream, Tokenizer, build_tokenizer, load_tokenizer, registry

CORPUS = [
    "def f(x):\n    return x + 1\n" * 20,
    "Zwölf Boxkämpfer jagen Viktor 😀 – 東京 café\t<|endoftext|> ",
    "a  b   c 2026",
]
CHARACTERS = "".join(sorted(set("".join(CORPUS))))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(CORPUS)
KINDS = ["byte", "char", "bpe", "gpt2", "cl100k_base", "huggingface"]
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {}


@pytest.fixture(params=KINDS)
def tokenizer(request, built, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Tokenizer:
    name = request.param
    if name not in built:
        cache = tmp_path_factory.mktemp("cache")
        match name:
            case "byte":
                config = ByteTokenizerConfig(kind="byte")
            case "char":
                config = CharTokenizerConfig(kind="char")
            case "bpe":
                config = BPETokenizerConfig(vocab_size=300)
            case "huggingface":
                shared = request.getfixturevalue("shared")
                config = HuggingFaceTokenizerConfig(kind="huggingface", path=str(shared / "tokenizers/hf/gpt2"))
            case _:
                shared = request.getfixturevalue("shared")
                # A copy: tiktoken deletes files that it does not trust.
                monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache / "tiktoken"))
                shutil.copytree(shared / "tokenizers/tiktoken", cache / "tiktoken")
                config = TiktokenTokenizerConfig(kind="tiktoken", name=name)
        built[name] = build_tokenizer(config, lambda: CORPUS, "corpus", cache)
    return built[name]


def writable(tokenizer: Tokenizer, text: str) -> str:
    """Return ``text`` without characters that a character tokenizer does not know."""
    return "".join(c for c in text if c in CHARACTERS) if tokenizer.vocab_size == len(CHARACTERS) + 1 else text


@quick
@given(text=ANY_TEXT)
def test_the_round_trip_is_lossless(tokenizer: Tokenizer, text: str) -> None:
    text = writable(tokenizer, text)
    assert tokenizer.lossless
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.end_id not in ids  # not even if the text contains its name


@quick
@given(text=ANY_TEXT)
def test_the_bytes_of_the_ids_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    text = writable(tokenizer, text)
    sizes = tokenizer.bytes_per_token()
    assert sizes.shape == (tokenizer.vocab_size,)
    assert sizes[tokenizer.end_id] == 0
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())


@quick
@given(text=ANY_TEXT)
def test_a_stream_gives_whole_characters_and_in_all_the_text(tokenizer: Tokenizer, text: str) -> None:
    text = writable(tokenizer, text)
    stream = TextStream(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown + stream.finish() == text


def test_a_batch_has_the_ids_of_its_texts_also_of_very_long_ones(tokenizer: Tokenizer) -> None:
    long = "the cat sat on 12 mats,  and then – " * 20_000
    texts = [*CORPUS, "", writable(tokenizer, long)]
    batch = tokenizer.encode_batch(texts)
    assert all(ids.dtype == np.uint32 for ids in batch)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode(batch[-1]) == texts[-1]


def test_a_saved_tokenizer_is_the_same_one(tokenizer: Tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
    assert [loaded.encode(text) for text in CORPUS] == [tokenizer.encode(text) for text in CORPUS]


def test_a_damaged_folder_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved")
    for file in (tmp_path / "saved").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="saved"):
        load_tokenizer(tmp_path / "saved")
    with pytest.raises(UserError, match="absent"):
        load_tokenizer(tmp_path / "absent")


def test_half_characters_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"character 1 is U\+D800, a surrogate"):
        tokenizer.encode("a\ud800")


def test_broken_bytes_decode_to_the_replacement_character(built: dict[str, Tokenizer]) -> None:
    byte = build_tokenizer(ByteTokenizerConfig(kind="byte"), list, "", Path())
    assert byte.decode([0xC3]) == "\ufffd"
    assert byte.decode([*"é".encode(), 256, 0x61]) == "éa"
    assert byte.encode("é\0") == [0xC3, 0xA9, 0]


def test_fingerprints_tell_kinds_and_vocabularies_apart(tmp_path: Path) -> None:
    def of(config, texts: Callable[[], list[str]]) -> str:
        return build_tokenizer(config, texts, str(texts()), tmp_path).fingerprint

    found = [
        of(ByteTokenizerConfig(kind="byte"), lambda: CORPUS),
        of(CharTokenizerConfig(kind="char"), lambda: CORPUS),
        of(CharTokenizerConfig(kind="char"), lambda: CORPUS[:1]),
        of(BPETokenizerConfig(vocab_size=300), lambda: CORPUS),
        of(BPETokenizerConfig(vocab_size=262), lambda: CORPUS),
        of(BPETokenizerConfig(vocab_size=300), lambda: CORPUS[1:]),
    ]
    assert len(set(found)) == len(found)
    assert of(CharTokenizerConfig(kind="char"), lambda: CORPUS[::-1]) == found[1]


def test_every_kind_has_one_class() -> None:
    configs = get_args(get_args(TokenizerConfig)[0])
    assert {get_args(one.model_fields["kind"].annotation)[0] for one in configs} == registry.TOKENIZERS.keys()
    assert all(callable(registry.tokenizer_class(name).build) for name in registry.TOKENIZERS)
