"""Where packing cuts a text: between characters and, if one begins near, between words."""

from __future__ import annotations

import random
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.packed import metaspace, packed
from tokenizers import decoders, models, pre_tokenizers

from quintet.data.packing import Packed
from quintet.tokenize.bounds import clean_starts
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer


@settings(max_examples=100)
@given(st.lists(st.text("aé日🎹", min_size=1, max_size=30), min_size=1, max_size=4), st.booleans())
def test_no_chunk_begins_within_a_character(texts: list[str], join: bool) -> None:
    tokenizer = ByteTokenizer()
    with tempfile.TemporaryDirectory() as place:
        samples = packed(Path(place), texts, 12, tokenizer, kind="chunks", join=join)
        parts = [tokenizer.decode(samples.sample(row).ids) for row in range(samples.count)]
        assert "\ufffd" not in "".join(parts)
        assert "".join(parts) == "".join(texts)


def test_no_chunk_begins_within_a_word_of_word_pieces(tmp_path: Path) -> None:
    pieces = ["[UNK]", "[SEP]", "token", "##iz", "##er", "##s", "cut", "here"]
    library = tokenizers.Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    tokenizer = HuggingFaceTokenizer(library.to_str(), "[SEP]")
    samples = packed(tmp_path, ["cut tokenizers here tokenizers"], 5, tokenizer, kind="chunks", keep_ends=False)
    texts = [tokenizer.decode(samples.sample(row).ids) for row in range(samples.count)]
    assert not any(text.lstrip().startswith("##") for text in texts)
    assert clean_starts(tokenizer).tolist() == [not piece.startswith("##") for piece in pieces]
    assert [samples.sample(row).ids.size for row in range(samples.count)] == [6, 4]


MARKS = {
    "metaspace": "▁", "llama2": "▁", "mistral-v1": "▁", "mistral-v3": "▁", "t5-base": "▁",
    "gpt2": "Ġ", "opt": "Ġ", "gpt-neox-20b": "Ġ", "dolma2": "Ġ", "bert-base-uncased": "##",
}  # fmt: skip
LIKE_OTHERS = ("mistral-v1", "opt", "gpt-neox-20b", "dolma2")


def sentences(seed: int) -> list[str]:
    """Texts with long words, with words that no space begins, and with characters of several bytes."""
    draw = random.Random(seed)
    parts = ["a", "b", " ", " tokenizers", " cut", "here", " 日本日本日本", "\n", ", naïve", "ing", "abcdefghi", " x"]
    return ["".join(draw.choices(parts, k=draw.randint(1, 40))) for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest) -> tuple[HuggingFaceTokenizer, list[str]]:
    """A tokenizer and the tokens of its vocabulary by id, as its library spells them."""
    name = request.param
    made = metaspace() if name == "metaspace" else request.getfixturevalue("shared_tokenizer")(name)
    return made, [made._library.id_to_token(number) or "" for number in range(made.vocab_size)]


@pytest.mark.parametrize(
    ("tokenizer", "mark"),
    [pytest.param(name, mark, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name, mark in MARKS.items()],
    ids=MARKS,
    indirect=["tokenizer"],
)
def test_no_chunk_begins_within_a_word_where_one_begins_near(
    tokenizer: tuple[HuggingFaceTokenizer, list[str]], mark: str, tmp_path: Path
) -> None:
    """By the marks of the vocabulary only: each chunk begins with a word, if one begins at one of the possible places,
    and otherwise with a character."""
    made, spelt = tokenizer

    added = made._library.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special} - {made.unknown_id}

    def begins(token: int) -> bool:
        marked = not spelt[token].startswith("##") if mark == "##" else spelt[token].startswith((mark, " "))
        return marked or token in special

    cuts = 0
    for room, overlap in ((8, 0), (13, 2), (16, 3)):
        alone = 0  # ids between two long words: chunks of one id, which have no target
        keys = {"kind": "chunks", "join": False, "overlap": overlap}
        samples = packed(tmp_path / str(room), sentences(room), room - 1, made, **keys)
        for document in range(samples.store.document_count):
            start, last = (int(bound[0]) for bound in samples.store.document_bounds(np.array([document])))
            chunks = [(first, stop) for first, stop in bounds_of(samples) if start <= first < last]
            lost = last - chunks[-1][1]
            assert lost in ((0,) if overlap else (0, 1))
            alone += lost
            for (first, stop), (following, _) in pairwise([(start, start + overlap), *chunks]):
                if following == stop + 1 and not overlap:
                    alone += 1
                    continue
                assert following == stop - overlap
                assert stop - first <= room
                if stop == start + overlap:
                    continue  # where the document begins
                near = samples.store.tokens(first + 1, first + room + 1 - overlap)
                beginning = int(samples.store.tokens(following, following + 1)[0])
                cuts += 1
                if any(begins(int(token)) for token in near):
                    assert begins(beginning)
                elif (piece := made.pieces.of(beginning))[1:]:
                    assert not 0x80 <= piece[0] < 0xC0
        assert alone == samples.left_out.samples
    assert cuts > 100


def bounds_of(samples: Packed) -> list[tuple[int, int]]:
    return list(zip(samples.table.starts.tolist(), samples.table.stops.tolist(), strict=True))


def test_no_joined_chunk_begins_within_a_word(tmp_path: Path) -> None:
    """This also holds when the repeated part begins in the previous document."""
    made = metaspace()
    texts = ["cut tokenizers", "here tokenizers cut", "cut here tokenizers here"]
    for overlap in (0, 1, 2):
        keys = {"kind": "chunks", "keep_ends": False, "overlap": overlap}
        samples = packed(tmp_path / str(overlap), texts, 6, made, **keys)
        first = [int(samples.sample(row).ids[0]) for row in range(samples.count)]
        assert {made._library.id_to_token(token) for token in first} <= {"▁token", "▁cut", "▁here"}
        assert len(first) > 2


def test_a_text_may_be_cut_in_front_of_every_byte_that_begins_a_character() -> None:
    clean = clean_starts(ByteTokenizer()).tolist()
    for byte in range(256):
        assert clean[byte] == (byte & 0b1100_0000 != 0b1000_0000), hex(byte)
    assert clean[ByteTokenizer.end_id]


def test_a_mark_in_front_of_a_single_letter_is_a_mark() -> None:
    """Without one, every character of "▁a" and "c" would be a word."""
    pieces = ["<unk>", "</s>", "▁", "▁a", "▁b", "c"]
    library = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.add_special_tokens(["</s>"])
    clean = clean_starts(HuggingFaceTokenizer(library.to_str(), "</s>"))
    assert clean.tolist() == [False, True, True, True, True, False]
