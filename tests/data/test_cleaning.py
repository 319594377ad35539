"""Documents that are dropped: too short or long, of poor quality, or duplicates."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.helpers import MakeConfig, write_jsonl

from quintet.config.cleaning import CleaningConfig
from quintet.data import build, shards
from quintet.data.cleaning import clean, find_duplicates, reason_to_drop, rules_of, shingles, signer
from quintet.data.prepare import prepare
from quintet.data.sources import base
from quintet.data.sources.base import TextParts, TextPiece, TokenIds
from quintet.data.split import hold_out, training_stream, whole
from quintet.data.store import TokenStore
from quintet.errors import UserError

PROSE = "It was the best of times and it was the worst of times, that we have to be with. " * 4
GOPHER = {  # Rae et al. 2021, table A1
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 10,
    "max_symbol_ratio": 0.1,
    "max_bullet_lines": 0.9,
    "max_ellipsis_lines": 0.3,
    "min_alphabetic_words": 0.8,
    "min_stop_words": 2,
}


def reason(text: str, **cleaning: Any) -> str | None:
    return reason_to_drop(text, rules_of(CleaningConfig.model_validate(cleaning)))


def test_all_of_gophers_rules_keep_prose() -> None:
    assert reason(PROSE, quality=GOPHER) is None


@pytest.mark.parametrize(
    ("name", "limit", "dropped", "remains"),
    [
        ("min_words", 50, "word " * 49, "word " * 50),
        ("max_words", 100_000, "a " * 100_001, "a " * 100_000),
        ("min_mean_word_length", 3, "a to the", "an ox fox the cow"[3:] + " four"),
        ("max_mean_word_length", 10, "x" * 11, "x" * 10),
        ("max_symbol_ratio", 0.1, "# # " + "word " * 17, "# # " + "word " * 18),
        ("max_symbol_ratio", 0.1, "so… well... " + "word " * 17, "so… well... " + "word " * 18),
        ("max_bullet_lines", 0.9, "• a\n* b\n - c", "- a\n" * 9 + "\nb"),
        ("max_ellipsis_lines", 0.3, "a…\nb...\nc\nd\ne\nf", "a…\nb...\n  c...\n" + "line\n" * 7),
        ("min_alphabetic_words", 0.8, "a 1 2 3 b", "a b c d 5"),
        ("min_stop_words", 2, "The the THE cat", '"The cat of it"'),
        ("without", ["lorem ipsum"], "a Lorem Ipsum text", "a lorem text, ipsum"),
        ("without", ["{"], "function() {}", "function()"),
    ],
)
def test_a_quality_rule_drops_beyond_its_limit_and_keeps_what_is_at_it(
    name: str, limit: Any, dropped: str, remains: str
) -> None:
    assert reason(dropped, quality={name: limit}) == name
    assert reason(remains, quality={name: limit}) is None


@given(st.text(max_size=40), st.integers(1, 40), st.integers(0, 20))
def test_lengths_are_kept_from_the_least_to_the_most(text: str, least: int, more: int) -> None:
    found = reason(text, min_characters=least, max_characters=least + more)
    assert (found is None) == (not text or least <= len(text) <= least + more)


@given(st.text(max_size=60))
def test_every_rule_gives_an_answer_for_every_text(text: str) -> None:
    for name, limit in GOPHER.items():
        assert reason(text, quality={name: limit}) in (None, name)


def test_nothing_is_dropped_unless_it_is_asked_for() -> None:
    assert rules_of(CleaningConfig()) == {}


def test_limits_that_keep_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="5 is more than the 4 of `max_characters`; no document would be left"):
        CleaningConfig.model_validate({"min_characters": 5, "max_characters": 4})
    with pytest.raises(ValidationError, match="9 is more than the 8 `stop_words`"):
        CleaningConfig.model_validate({"quality": {"min_stop_words": 9}})


def test_parts_are_judged_together_and_ready_tokens_are_kept() -> None:
    ids = TokenIds(np.array([1]), "there")
    parts, short = TextParts(("ab", "cde"), (False, True)), TextParts(("a", "b"), (False, True))
    dropped = Counter[str]()
    found = list(clean(["abcde", "abcd", parts, short, ids, ""], CleaningConfig(min_characters=5), dropped))
    assert found == ["abcde", parts, ids, ""]
    assert dropped == {"min_characters": 2}


class Documents:
    """A store in memory: the hash and the signature of each document."""

    def __init__(self, texts: list[str], cleaning: CleaningConfig) -> None:
        sign = signer(cleaning)
        self.document_count = len(texts)
        self._hashes = np.array([hash(text) & 0xFFFF_FFFF for text in texts], dtype=np.uint64)
        self._signatures = np.array([sign(text) if sign else [] for text in texts])

    def hashes(self, start: int, stop: int) -> np.ndarray:
        return self._hashes[start:stop]

    def signatures(self, start: int, stop: int) -> np.ndarray:
        return self._signatures[start:stop]


def duplicates(texts: list[str], **how: Any) -> list[int]:
    cleaning = CleaningConfig.model_validate({"deduplicate": how})
    found, reasons = find_duplicates(Documents(texts, cleaning), cleaning)
    assert reasons.total() == found.size
    return found.tolist()


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_of_equal_documents_the_first_stays(texts: list[str]) -> None:
    assert duplicates(texts, kind="exact") == [place for place, text in enumerate(texts) if text in texts[:place]]
    assert duplicates(texts, kind="none") == []


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_of_similar_documents_the_first_stays() -> None:
    # Runs of 5 words: 96 of the first; the second has 94 of them and two of its own, the third 46 and 50.
    texts = [
        words(0, 100),
        words(2, 102),
        words(50, 150),
        words(0, 100).upper() + "\n",
        words(51, 151),
        "w1 w2",
        "W1  w2",
    ]
    assert duplicates(texts, kind="minhash") == [1, 3, 4, 6]
    assert duplicates(texts, kind="minhash", threshold=1) == [3, 6]
    assert 2 in duplicates(texts, kind="minhash", threshold=0.2, permutations=256)


def test_documents_without_words_are_not_compared() -> None:
    assert duplicates([" ", "\n", " ", ""], kind="minhash") == []


def test_what_is_similar_to_a_dropped_document_only_stays() -> None:
    chain = [words(start, start + 100) for start in (0, 8, 16)]
    found = duplicates(chain, kind="minhash", threshold=0.8, permutations=512)  # 88/104 = 0.85 and 80/112 = 0.71
    assert found == [1]


@settings(max_examples=20)
@given(st.integers(0, 90))
def test_signatures_agree_as_much_as_the_runs_of_words_do(moved: int) -> None:
    sign = signer(CleaningConfig.model_validate({"deduplicate": {"kind": "minhash", "permutations": 1024}}))
    assert sign is not None
    one, other = words(0, 100), words(moved, moved + 100)
    shared, united = set(shingles(one, 5)) & set(shingles(other, 5)), set(shingles(one, 5)) | set(shingles(other, 5))
    assert abs((sign(one) == sign(other)).mean() - len(shared) / len(united)) < 0.08


def test_signatures_do_not_depend_on_how_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.data import cleaning as module

    sign = signer(CleaningConfig.model_validate({"deduplicate": {"kind": "minhash"}}))
    assert sign is not None
    whole = sign(words(0, 500))
    in_parts = module._chunks
    monkeypatch.setattr(module, "_chunks", lambda values: in_parts(values, 7))
    assert sign(words(0, 500)).tolist() == whole.tolist()


def rows(file: Path, texts: list[str]) -> dict[str, Any]:
    write_jsonl(file, ({"text": text} for text in texts))
    return {"kind": "jsonl", "path": str(file), "label": "rows"}


def texts_of(store: TokenStore) -> list[bytes]:
    ends = store.document_ends(0, store.document_count).tolist()
    return [bytes(store.tokens(a, b - 1).tolist()) for a, b in zip([0, *ends], ends, strict=False)]


def test_what_was_dropped_is_counted_and_neither_trained_nor_validated_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    texts = ["short", *(f"{number % 3} a document of some length" for number in range(30)), "", "x" * 99]
    cleaning = {"min_characters": 9, "max_characters": 98, "deduplicate": {"kind": "exact"}}
    config = make_config(rows(tmp_path / "rows.jsonl", texts), cleaning=cleaning, validation=0.4)
    prepared = prepare(config)
    (store,) = prepared.stores
    assert store.manifest.dropped == {"min_characters": 1, "max_characters": 1, "empty": 1, "duplicate": 27}
    assert store.document_count == 30
    assert store.dropped.tolist() == list(range(3, 30))
    assert store.manifest.unused.documents == 27
    assert store.manifest.unused.tokens == 27 * 28
    assert prepared.validation is not None
    assert prepared.validation.tokens == round(0.4 * 3 * 28)
    assert prepared.train.tokens + prepared.validation.tokens == 3 * 28


def test_sources_to_validate_on_are_cleaned_too(make_config: MakeConfig, tmp_path: Path) -> None:
    held_out = rows(tmp_path / "held.jsonl", ["validated on"] * 3 + ["and on this"])
    source = rows(tmp_path / "rows.jsonl", ["trained on, and on this"])
    prepared = prepare(make_config(source, validation_sources=[held_out], cleaning={"deduplicate": {"kind": "exact"}}))
    assert prepared.validation is not None
    assert prepared.validation.tokens == len("validated on") + len("and on this") + 2


def test_cleaning_makes_another_store(make_config: MakeConfig, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", ["one and one"] * 3 + ["two and two"])
    ways: list[dict[str, Any]] = [{}, {"deduplicate": {"kind": "exact"}}, {"deduplicate": {"kind": "minhash"}}]
    ways += [{"min_characters": 3}, {"deduplicate": {"kind": "minhash", "ngram": 1}}]
    prepared = [prepare(make_config(source, cleaning=way, validation=0)) for way in ways]
    assert len({one.stores[0].folder for one in prepared}) == len(ways)
    assert [one.stores[0].dropped.tolist() for one in prepared] == [[], [1, 2], [1, 2], [], [1, 2]]
    assert prepared[0].fingerprint == prepared[3].fingerprint != prepared[1].fingerprint


def test_similar_documents_are_found_across_shards_for_any_number_of_processes(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNIT_BYTES", 2_000)
    monkeypatch.setattr(build, "_SMALL", 0)
    texts = [words(start * 37 % 60, start * 37 % 60 + 40) for start in range(40)]
    source = rows(tmp_path / "rows.jsonl", texts)
    cleaning = {"deduplicate": {"kind": "minhash", "permutations": 64}}
    found = [
        prepare(make_config(source, cleaning=cleaning, processes=count, cache_dir=str(tmp_path / str(count))))
        for count in (1, 2)
    ]
    one, two = (prepared.stores[0] for prepared in found)
    assert len(one.manifest.shards) > 2
    assert one.dropped.tolist() == two.dropped.tolist() == duplicates(texts, kind="minhash", permutations=64)
    assert one.signatures(0, 40).tolist() == two.signatures(0, 40).tolist()
    assert one.fingerprint == two.fingerprint


def test_a_list_of_dropped_documents_that_was_cut_short_is_noticed(make_config: MakeConfig, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", ["one and one"] * 3)
    (store,) = prepare(make_config(source, cleaning={"deduplicate": {"kind": "exact"}}, validation=0)).stores
    file = store.folder / "dropped.npy"
    assert np.load(file).tolist() == [1, 2]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"dropped\.npy: is truncated"):
        TokenStore.open(store.folder)


def test_minhash_without_its_library_names_the_extra(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = make_config(rows(tmp_path / "rows.jsonl", ["a"]), cleaning={"deduplicate": {"kind": "minhash"}})
    with pytest.raises(UserError, match=r"pip install 'quintet\[dedup\]'"):
        prepare(config)


class Lengths:
    """Documents of given lengths, without content."""

    def __init__(self, lengths: list[int]) -> None:
        self.ends = np.cumsum(lengths)
        self.token_count, self.document_count = int(self.ends[-1]), len(lengths)

    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.append(0, self.ends)[documents], self.ends[documents]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.uint32)


@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 99))
def test_no_stream_has_a_token_of_a_document_that_is_left_out(
    data: st.DataObject, lengths: list[int], share: float, seed: int
) -> None:
    left_out = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))), dtype=np.int64)
    store: Any = Lengths(lengths)
    held = hold_out(store, share, seed, left_out)
    trained, everything = training_stream(store, held, left_out), whole(store, left_out)
    dropped = {token for one in left_out for token in range(store.ends[one] - lengths[one], store.ends[one])}
    expected = [token for token in range(store.token_count) if token not in dropped]
    validated = [token for a, b in zip(held.ranges.starts, held.ranges.stops, strict=True) for token in range(a, b)]
    assert sorted(trained.read(0, trained.length).tolist() + validated) == expected
    assert everything.read(0, everything.length).tolist() == expected
    assert len(validated) == round(share * len(expected))


def test_a_long_text_is_encoded_in_pieces_and_stays_one_document(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(map("".join, product("abcdefgh", repeat=4)))
    texts = [long, "short", "x" * 9_000, long + "end", long]
    source = rows(tmp_path / "rows.jsonl", texts)
    how = {"cleaning": {"deduplicate": {"kind": "minhash"}}, "tokenizer": {"kind": "bpe", "vocab_size": 300}}
    (whole,) = prepare(make_config(source, cache_dir=str(tmp_path / "whole"), validation=0, **how)).stores
    monkeypatch.setattr(shards, "_BATCH", 500)
    lengths = [len(piece.text) for piece in shards._cut_long(texts[:1]) if isinstance(piece, TextPiece)]
    assert len(lengths) > 10
    assert max(lengths) < 1_100
    (pieces,) = prepare(make_config(source, cache_dir=str(tmp_path / "pieces"), validation=0, **how)).stores
    assert pieces.manifest == whole.manifest
    assert pieces.hashes(0, 5).tolist() == whole.hashes(0, 5).tolist()
    assert pieces.signatures(0, 5).tolist() == whole.signatures(0, 5).tolist()
    assert pieces.dropped.tolist() == [3, 4]
