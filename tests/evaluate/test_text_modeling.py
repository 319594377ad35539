"""Bits per byte and the rest, against models whose probabilities are known in closed form."""

from __future__ import annotations

import gzip
import json
import math
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quintet.config.evaluate import TextModelingConfig
from quintet.config.model import TransformerConfig
from quintet.config.sources import TextSource
from quintet.data.sources import reader_of
from quintet.data.sources.base import Report
from quintet.errors import UserError
from quintet.evaluate.likelihood import TokenScores, batched, token_scores, windows
from quintet.evaluate.model_and_tokenizer import check_text_model
from quintet.evaluate.text_modeling import (
    TextDocument,
    byte_table,
    document_result,
    model_text,
    text_document,
)
from quintet.evaluate.topics import read_topics
from quintet.model import build_model
from quintet.model.cache import Abilities
from quintet.tokenize.base import NO_END, TokenBytes
from quintet.tokenize.bounds import text_bounds
from quintet.tokenize.simple import ByteTokenizer, IdTokenizer

ALPHABET = "abé "  # é has two bytes


class Unit:
    """A tokenizer whose ids are all strings of ``size`` letters of the alphabet, and the end."""

    lossless = can_cut = True

    def __init__(self, size: int, end: bool = True) -> None:
        self.size = size
        self.units = ["".join(letters) for letters in product(ALPHABET, repeat=size)]
        self.vocab_size = len(self.units) + end
        self.end_id = len(self.units) if end else NO_END

    @property
    def pieces(self) -> TokenBytes:
        return TokenBytes((*(unit.encode() for unit in self.units), *([b""] if self.end_id != NO_END else [])))

    def bytes_per_token(self) -> np.ndarray:
        return self.pieces.lengths()

    def encode(self, text: str) -> list[int]:
        return [self.units.index(text[at : at + self.size]) for at in range(0, len(text), self.size)]


class Chain(nn.Module):
    """A Markov chain over letters, as a model of tokens: the logits behind a token are those of its last letter.

    ``letters`` [alphabet + 1, alphabet] are the log-probabilities of the next letter; the last row begins a text. Its
    features are one-hot, so that what the logits are taken from is seen to be picked at the right places.
    """

    context_length = 16
    config = SimpleNamespace(tells_documents=False)
    abilities = Abilities()

    def __init__(self, tokenizer: Any, letters: np.ndarray) -> None:
        super().__init__()
        self.vocab_size = tokenizer.vocab_size
        table = np.full((tokenizer.vocab_size, tokenizer.vocab_size), -np.inf)
        for last in range(tokenizer.vocab_size):
            begins = last == tokenizer.end_id
            for token, unit in enumerate(tokenizer_units(tokenizer)):
                row = len(ALPHABET) if begins else ALPHABET.index(tokenizer_units(tokenizer)[last][-1])
                table[last, token] = 0.0
                for letter in unit:
                    table[last, token] += letters[row, ALPHABET.index(letter)]
                    row = ALPHABET.index(letter)
        self.table = torch.from_numpy(table)

    def hidden(self, ids: Tensor, **_: Any) -> Tensor:
        assert ids.shape[1] <= self.context_length
        return nn.functional.one_hot(ids, self.vocab_size).double()

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table[hidden.argmax(-1)].clamp(min=-1e30)


def tokenizer_units(tokenizer: Unit) -> list[str]:
    return tokenizer.units


COMPUTE = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)


class LanguageModel:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.compute = model, tokenizer, COMPUTE
        self.bounds = text_bounds(tokenizer)


def chain() -> np.ndarray:
    raw = np.random.default_rng(3).normal(size=(len(ALPHABET) + 1, len(ALPHABET)))
    return raw - np.log(np.exp(raw).sum(1, keepdims=True))


def text_of(seed: int, letters: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(ALPHABET), letters))


def closed_form(text: str, letters: np.ndarray) -> float:
    """Bits per byte of ``text`` under the chain, letter by letter."""
    nats, row = 0.0, len(ALPHABET)
    for letter in text:
        nats -= letters[row, ALPHABET.index(letter)]
        row = ALPHABET.index(letter)
    return nats / math.log(2) / len(text.encode())


@pytest.mark.parametrize("stride", [None, 1, 5, 16])
def test_two_tokenizations_of_a_text_have_the_same_bits_per_byte(stride: int | None) -> None:
    """The chain gives a text one probability, whether letters are tokens, or pairs, or fours of them."""
    letters, texts = chain(), [text_of(seed, count) for seed, count in ((1, 4), (2, 240), (3, 24))]
    found = {}
    for size in (1, 2, 4):
        tokenizer = Unit(size)
        language_model = LanguageModel(Chain(tokenizer, letters), tokenizer)
        topics = {"short": texts[:1], "long": texts[1:]}
        made = {name: [text_document(tokenizer, text) for text in some] for name, some in topics.items()}
        found[size] = model_text(language_model, made, stride)  # type: ignore[arg-type]
    for result in found.values():
        assert result.topics["short"].bits_per_byte == pytest.approx(closed_form(texts[0], letters), abs=1e-6)
        size = sum(len(text.encode()) for text in texts)
        bits = sum(closed_form(text, letters) * len(text.encode()) for text in texts)
        assert result.whole.bytes == size
        assert result.whole.bits_per_byte == pytest.approx(bits / size, abs=1e-6)
    assert found[1].whole.byte_perplexity == pytest.approx(found[4].whole.byte_perplexity, abs=1e-5)
    # A loss a token, on the other hand, says nothing between the two.
    assert found[4].whole.nats / found[4].whole.tokens > 2 * found[1].whole.nats / found[1].whole.tokens


def test_equally_likely_tokens_cost_log_vocabulary_each() -> None:
    """A transformer whose weights are all 0, with the byte tokenizer: log2 257 bits a byte, and a first byte too."""
    config = TransformerConfig.model_validate({"layers": 1, "width": 8, "attention": {"heads": 1}})
    model = build_model(config, 257, 12, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    document = text_document(ByteTokenizer(), "naïve — a text of some length")
    result = model_text(LanguageModel(model, ByteTokenizer()), {"a": [document]}).whole
    assert result.bytes == result.tokens == len("naïve — a text of some length".encode())
    assert result.bits_per_byte == pytest.approx(math.log2(257), abs=1e-6)


def test_without_an_end_id_the_first_token_costs_what_it_would_by_chance() -> None:
    letters, tokenizer = chain(), Unit(1, end=False)
    language_model = LanguageModel(Chain(tokenizer, letters), tokenizer)
    (scores,) = token_scores(language_model, [np.array(tokenizer.encode("abba"))])  # type: ignore[arg-type]
    assert scores.nats[0] == pytest.approx(math.log(4))
    assert scores.guess[0] == -1
    assert scores.nats[1] == pytest.approx(-letters[0, 1], abs=1e-6)


@pytest.mark.parametrize("mask", ["causal", "causal_document", "prefix"])
def test_windows_see_what_the_model_sees_token_by_token(mask: str) -> None:
    """Each token from a pass of its own over the part of the text that its window gives it."""
    attention = {"heads": 2, "mask": mask}
    config = TransformerConfig.model_validate({"layers": 2, "width": 16, "attention": attention})
    model = build_model(config, 257, 8, seed=1).eval()
    text = np.frombuffer(b"one that is longer than that", np.uint8).astype(np.int64)
    (scores,) = token_scores(LanguageModel(model, ByteTokenizer()), [text], 3)  # type: ignore[arg-type]
    whole = np.append(256, text)
    for window in windows(len(whole), 8, 3):
        inputs = torch.from_numpy(whole[None, window.start : window.stop - 1])
        documents = (torch.arange(inputs.shape[1]) > 0).long()[None] if window.start == 0 else None
        prompts = torch.arange(inputs.shape[1])[None] < window.first - window.start
        with torch.no_grad():
            logits = model(inputs, documents=documents, prompts=prompts)[0].double().log_softmax(-1)
        for place in range(window.first, window.stop):
            row = logits[place - 1 - window.start]
            assert scores.nats[place - 1] == pytest.approx(-row[whole[place]].item(), abs=1e-5)
            assert scores.guess[place - 1] == row.argmax()
            assert scores.confidence[place - 1] == pytest.approx(row.max().exp().item(), abs=1e-5)
    assert len(scores.nats) == len(text)


@settings(max_examples=300)
@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_predict_every_token_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    found = windows(length, context, stride)
    predicted = [place for one in found for place in range(one.first, one.stop)]
    assert predicted == list(range(1, length))
    assert all(1 <= one.inputs <= context and one.start < one.first for one in found)
    # What stands before the first predicted token, in windows behind the first:
    assert all(one.first - one.start >= min(one.first, context - stride + 1) for one in found[1:])
    assert all(one.inputs == min(context, one.stop - 1) for one in found)  # as much as there is room for
    assert [one.stop - one.first for one in found[1:-1]] == [stride] * len(found[1:-1])
    assert not found or found[0].stop == min(context + 1, length)


@settings(max_examples=100)
@given(st.lists(st.integers(2, 60), max_size=30), st.integers(1, 200))
def test_batches_hold_every_window_once_and_keep_the_limit(lengths: list[int], tokens: int) -> None:
    found = [window for number, length in enumerate(lengths) for window in windows(length, 64, 32, number)]
    batches = batched(found, tokens)
    assert sorted(one.document for batch in batches for one in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(one.inputs for one in b) <= tokens for b in batches)
    sizes = [one.inputs for batch in batches for one in batch]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches[:-1]:  # no further one had room
        assert (len(batch) + 1) * batch[0].inputs > tokens
    apart = batched(found, tokens, lambda length: length % 3)
    assert sorted(one.document for batch in apart for one in batch) == list(range(len(lengths)))
    assert all(len({one.inputs % 3 for one in batch}) == 1 for batch in apart)
    alone = batched(found, 10**9, lambda length: length)
    assert len(alone) == len(set(lengths))


def scores_of(confidence: np.ndarray, ids: np.ndarray, guess: np.ndarray) -> TokenScores:
    return TokenScores(np.linspace(0.1, 3, len(ids)), guess, confidence)


def test_calibration_accuracy_and_brier_as_numpy_has_them() -> None:
    draw = np.random.default_rng(0)
    ids, guess = draw.integers(0, 256, (2, 5000))
    guess = np.where(draw.random(5000) < 0.4, ids, guess)
    confidence = np.append(draw.random(4996), [1 / 15, 2 / 15, 1.0, 1e-9])
    result = document_result(TextDocument(ids, 5000), scores_of(confidence, ids, guess), *byte_table(ByteTokenizer()))
    hit = ids == guess
    expected = 0.0
    for low in range(15):  # as in the paper: the bins are open below and closed above
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.sum() / 5000 * abs(hit[inside].mean() - confidence[inside].mean())
    assert result.calibration_error == pytest.approx(expected, abs=1e-12)
    assert result.accuracy == result.byte_accuracy == pytest.approx(hit.mean())
    assert result.brier == pytest.approx(np.mean((confidence - hit) ** 2))


def test_a_byte_is_matched_where_the_likeliest_token_has_it_too() -> None:
    tokenizer = Unit(2)
    true, guess = "abéa bbb", "aaéé  éb"  # pairs: "ab"/"aa", "éa"/"éé", " b"/"  ", "bb"/"éb"
    ids, guesses = (np.array(tokenizer.encode(text)) for text in (true, guess))
    document = TextDocument(ids, len(true.encode()))
    result = document_result(document, scores_of(np.full(4, 0.5), ids, guesses), *byte_table(tokenizer))  # type: ignore
    # "a", the two bytes of "é", " "; of "bb" the first is a byte of é, and the second stands beside another one.
    assert result.matched == 1 + 2 + 1
    assert result.accuracy == 0


def test_a_confidence_on_the_border_of_two_bins_is_in_the_lower_one() -> None:
    confidence, guess = np.array([1 / 15, 0.05, 0.1]), np.array([7, 1, 1])
    scores = TokenScores(np.ones(3), guess, confidence)
    found = document_result(TextDocument(np.array([7, 2, 2]), 3), scores, *byte_table(ByteTokenizer()))
    assert found.calibration_error == pytest.approx((abs(1 - 1 / 15 - 0.05) + 0.1) / 3)


def test_a_byte_of_zero_is_no_match_for_a_token_without_bytes() -> None:
    scores = TokenScores(np.ones(2), np.array([256, 0]), np.ones(2) / 2)
    found = document_result(TextDocument(np.array([0, 0]), 2), scores, *byte_table(ByteTokenizer()))
    assert found.matched == 1


def test_a_likeliest_row_beyond_the_ids_matches_no_byte() -> None:
    scores = TokenScores(np.ones(2), np.array([300, 7]), np.ones(2) / 2)
    found = document_result(TextDocument(np.array([7, 7]), 2), scores, *byte_table(ByteTokenizer()))
    assert (found.matched, found.hits) == (1, 1)


def test_what_has_no_loss_is_context_and_not_measured() -> None:
    letters, tokenizer = chain(), Unit(1)
    language_model = LanguageModel(Chain(tokenizer, letters), tokenizer)
    ids = np.array(tokenizer.encode("abab"))
    loss_mask = np.array([False, False, True, True])
    result = model_text(language_model, {"a": [TextDocument(ids, 2, loss_mask)]}).whole  # type: ignore[arg-type]
    assert (result.tokens, result.bytes) == (2, 2)
    assert result.nats == pytest.approx(-letters[1, 0] - letters[0, 1], abs=1e-6)


def test_a_stride_beyond_the_context_and_ids_without_text_are_refused() -> None:
    language_model = LanguageModel(Chain(Unit(1), chain()), Unit(1))
    with pytest.raises(UserError, match="stride: 17 tokens are more than the model's context of 16"):
        token_scores(language_model, [np.zeros(3)], 17)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="have no text"):
        check_text_model(LanguageModel(Chain(Unit(1), chain()), IdTokenizer(9, 8)), "here")  # type: ignore[arg-type]


# ---- the texts


def test_topics_are_files_or_the_values_of_a_field(tmp_path: Path) -> None:
    (tmp_path / "science").mkdir()
    (tmp_path / "science/hard.txt").write_text("one<>two", "utf-8")
    (tmp_path / "chat.jsonl").write_text('{"text": "naïve", "topic": "x"}\n\n{"text": "b", "topic": "y"}\n', "utf-8")
    (tmp_path / "README.md").write_text("no topic")
    found = read_topics(TextModelingConfig(path=str(tmp_path), separator="<>", max_bytes=4), "here")
    assert found.topics == {"chat": ["naï"], "science/hard": ["one", "t"]}  # 4 bytes each, and no half of an ï
    assert found.passed == {"other endings": [str(tmp_path / "README.md")]}
    by_field = read_topics(TextModelingConfig(path=str(tmp_path / "chat.jsonl"), topic_field="topic"), "here")
    assert by_field.topics == {"x": ["naïve"], "y": ["b"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff", r"a\.txt:1: byte 0 \(0xff\) is not UTF-8"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl:1: byte 10 of the line is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"character 0 is U\+D800, a surrogate"),
        ("a.txt", b"", "holds no text"),
        ("a.md", b"text", r"holds neither \.txt nor \.jsonl"),
        ("a.jsonl", b"{}\n", r"a\.jsonl:1: has no text in 'text'; its fields are none"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl:1: character 0 is U\+D83D, a surrogate"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', r"a\.jsonl:2: is no JSON"),
        ("a.jsonl", b"[]", r"a\.jsonl:1: is a list, not a JSON object"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_topics(TextModelingConfig(path=str(tmp_path)), "here")


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\r\n\ufeff\u2028\0<>"), max_size=12)


@given(documents=st.lists(TEXTS, min_size=1, max_size=4), separator=st.sampled_from([None, "\r\n\r\n", "\n\n", "<>"]),
       mark=st.booleans(), ending=st.sampled_from([".txt", ".TXT", ".txt.gz"]))  # fmt: skip
def test_a_text_is_measured_as_a_source_reads_it(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], separator: str | None, mark: bool, ending: str
) -> None:
    file = tmp_path_factory.mktemp("texts") / f"a{ending}"
    content = (b"\xef\xbb\xbf" if mark else b"") + (separator or "").join(documents).encode()
    file.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    source = TextSource(kind="text", path=str(file), separator=separator)
    units, _ = reader_of(source).index("here").units()
    read = [text for unit in units for text in unit.documents(Report())]
    config = TextModelingConfig(path=str(file), separator=separator)
    try:
        measured = read_topics(config, "here").topics["a"]
    except UserError as error:
        assert "holds no text" in str(error)  # noqa: PT017
        measured = []
    assert measured == [text for text in read if text]
    assert (separator or "").join(str(text) for text in read) in content.decode()


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_lines_of_json_are_measured_as_a_source_reads_them(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ascii_only: bool, line_end: str
) -> None:
    file = tmp_path_factory.mktemp("texts") / "a.ndjson"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + line_end for text in texts), "utf-8",
                    newline="")  # fmt: skip
    assert read_topics(TextModelingConfig(path=str(file)), "here").topics == {"a": texts}


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # the first has only its own part
def test_processes_share_the_windows_and_have_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, one after the other: as many passes each, and what both found is what one alone finds."""
    letters, tokenizer = chain(), Unit(1)
    documents = [np.array(tokenizer.encode(text_of(seed, 40))) for seed in range(280)]
    model = Chain(tokenizer, letters)
    passes: list[int] = []
    monkeypatch.setattr(model, "hidden", lambda ids, **_: passes.append(len(ids)) or Chain.hidden(model, ids))
    language_model = LanguageModel(model, tokenizer)
    alone = token_scores(language_model, documents)  # type: ignore[arg-type]
    counts, parts = [len(passes)], []
    monkeypatch.setattr("quintet.processes.world_size", lambda: 2)
    for rank in (1, 0):
        passes.clear()
        monkeypatch.setattr("quintet.processes.rank", lambda rank=rank: rank)
        monkeypatch.setattr("quintet.processes.all_gather", lambda value: parts.append(value) or list(parts))
        shared = token_scores(language_model, documents)  # type: ignore[arg-type]
        counts.append(len(passes))
    assert counts[0] % 2 == 1  # one of them has to repeat a pass
    assert counts[1] == counts[2] == counts[0] // 2 + 1
    assert not set(parts[0]) & set(parts[1])
    for one, other in zip(alone, shared, strict=True):
        assert (one.nats == other.nats).all()
