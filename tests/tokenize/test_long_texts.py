"""Cuts in long texts, against the libraries on the whole text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.config.tokenizer import BPETokenizerConfig, HuggingFaceTokenizerConfig, TiktokenTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import Tokenizer, base, build_tokenizer

# Words and what may be next to them: all kinds of white space, contractions, digits, marks, foreign letters.
PARTS = ["a", "the", "Is", "don't", "'s", " ", "  ", "\n", "\r\n", "\t", "12", "3456", ".", "!?", "/", "é", "e\u0301"]
PARTS += ["\u0308", "東京", "😀", "\u00a0", "\u2003", "<|endoftext|>", "²", "ß", "Ǆ"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)
Reference = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[Tokenizer, Reference]]:
    return {}


@pytest.fixture(params=["gpt2", "p50k_base", "cl100k_base", "o200k_base", "huggingface", "bpe", "simplified"])
def pair(request, known, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> tuple[Tokenizer, Reference]:
    """A tokenizer, and its library on the whole text."""
    name = request.param
    monkeypatch.setattr(base, "PART", 4)
    if name not in known:
        folder = tmp_path_factory.mktemp("tokenizers")
        if name == "huggingface":
            path = request.getfixturevalue("shared") / "tokenizers/hf/gpt2"
            ours = build_tokenizer(HuggingFaceTokenizerConfig(kind="huggingface", path=str(path)), list, "", folder)
            known[name] = ours, by_tokenizers(path / "tokenizer.json")
        elif name in ("bpe", "simplified"):
            config = BPETokenizerConfig(vocab_size=300, simplify=name == "simplified")
            ours = build_tokenizer(config, lambda: ["the cat  is at the mat. " * 50, "don't 12 is\n" * 20], "", folder)
            ours.save(folder / "saved")
            known[name] = ours, by_tokenizers(folder / "saved/tokenizer.json")
        else:
            shutil.copytree(request.getfixturevalue("shared") / "tokenizers/tiktoken", folder / "cache")
            monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "cache"))
            ours = build_tokenizer(TiktokenTokenizerConfig(kind="tiktoken", name=name), list, "", folder)
            known[name] = ours, tiktoken.get_encoding(name).encode_ordinary
    return known[name]


def by_tokenizers(file: Path) -> Reference:
    library = tokenizers.Tokenizer.from_file(str(file))
    library.encode_special_tokens = True
    return lambda text: library.encode(text, add_special_tokens=False).ids


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_cuts_change_no_id(pair: tuple[Tokenizer, Reference], text: str) -> None:
    ours, reference = pair
    assert ours.encode_batch([text, "x"])[0].tolist() == reference(text)


@given(text=TEXTS)
def test_the_parts_are_the_text_and_start_with_a_space(text: str) -> None:
    parts = list(base.cut_text(text, 4))
    assert "".join(parts) == text
    assert all(part.startswith(" ") for part in parts[1:])


def test_a_long_text_of_words_is_cut_into_parts_of_even_size() -> None:
    parts = list(base.cut_text("word " * 200_000, base.PART))
    assert len(parts) > 10
    assert max(map(len, parts)) <= 2 * base.PART + 5


def test_a_run_of_white_space_that_tiktoken_cannot_read_is_named(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shared / "tokenizers/tiktoken", tmp_path / "cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    ours = build_tokenizer(TiktokenTokenizerConfig(kind="tiktoken", name="gpt2"), list, "", tmp_path)
    with pytest.raises(UserError, match=r"gpt2 cannot cut it into words.* 3,000,000 characters.*shorten it"):
        ours.encode("a" + " " * 3_000_000 + "b")
