"""Tokenizers that are trained on the sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.config.tokenizer import BPETokenizerConfig, CharTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import build_tokenizer
from quintet.tokenize.bpe import select_evenly

TEXTS = ["low lower lowest newer newest wider widest " * 30, "été 1234 – naïve\n" * 10]


def bpe(tmp_path: Path, texts: Iterable[str] = TEXTS, **options):
    return build_tokenizer(BPETokenizerConfig(**options), lambda: texts, str(texts), tmp_path)


def test_training_is_deterministic_and_its_result_is_kept(tmp_path: Path) -> None:
    first, second = bpe(tmp_path / "a", vocab_size=290), bpe(tmp_path / "b", vocab_size=290)
    assert first.fingerprint == second.fingerprint

    def never() -> Iterable[str]:
        raise AssertionError("the texts are read although the tokenizer is there")

    again = build_tokenizer(BPETokenizerConfig(vocab_size=290), never, str(TEXTS), tmp_path / "a")
    assert again.fingerprint == first.fingerprint


def test_the_vocabulary_has_the_size_asked_for_or_what_the_corpus_gives(tmp_path: Path) -> None:
    assert bpe(tmp_path, vocab_size=270).vocab_size == 270
    poor = bpe(tmp_path, ["ab ab ab"], vocab_size=4000)
    assert 257 < poor.vocab_size < 270  # 256 bytes, the end, and a few pairs
    assert poor.decode(poor.encode("ab ab")) == "ab ab"


def test_the_first_merge_is_the_most_frequent_pair(tmp_path: Path) -> None:
    tokenizer = bpe(tmp_path, ["xyxyxy xyxy"] * 5, vocab_size=258)
    assert [tokenizer.pieces.of(token) for token in tokenizer.encode("xy")] == [b"xy"]


def test_simplify_drops_what_is_foreign_and_cuts_numbers_into_digits(tmp_path: Path) -> None:
    tokenizer = bpe(tmp_path, simplify=True, vocab_size=400)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("été – 1234\n\tnaïve 東京")) == "ete  1234\n\tnaive "
    pieces = [tokenizer.pieces.of(token) for token in tokenizer.encode("1234")]
    assert pieces == [b"1", b"2", b"3", b"4"]
    plain = bpe(tmp_path, vocab_size=400)
    assert len(plain.encode("1234")) < 4


def test_an_unknown_character_is_named(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CharTokenizerConfig(kind="char"), lambda: ["abc"], "abc", tmp_path)
    assert tokenizer.encode("cab") == [2, 0, 1]
    with pytest.raises(UserError, match=r"character 1 is 'é' \(U\+00E9.*tokenizer\.kind=byte"):
        tokenizer.encode("aé")


@pytest.mark.parametrize("config", [CharTokenizerConfig(kind="char"), BPETokenizerConfig()])
def test_nothing_to_train_on_is_one_clear_line(tmp_path: Path, config) -> None:
    with pytest.raises(UserError, match="hold no text"):
        build_tokenizer(config, list, "nothing", tmp_path)


@given(sizes=st.lists(st.integers(0, 400), max_size=60), budget=st.integers(64, 3000))
def test_an_even_selection_holds_its_budget_or_everything(sizes: list[int], budget: int) -> None:
    texts = [chr(97 + index % 26) * size for index, size in enumerate(sizes)]
    selected = select_evenly(texts, budget)
    size = sum(map(len, selected))
    if sum(sizes) <= budget:
        assert "".join(selected) == "".join(texts)
    else:
        assert budget * 0.5 <= size <= budget * 1.5


def test_an_even_selection_is_taken_from_everywhere() -> None:
    texts = [f"{index:05d}" * 20 for index in range(10_000)]
    chosen = [int(text[:5]) for text in select_evenly(texts, 100_000)]
    tenths = [sum(low <= number < low + 1000 for number in chosen) for low in range(0, 10_000, 1000)]
    assert min(tenths) > 0.7 * max(tenths)
