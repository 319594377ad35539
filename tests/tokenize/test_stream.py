"""Decoding of ids that come one by one, also ids that no text has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.config.tokenizer import ByteTokenizerConfig
from quintet.tokenize import TextStream, Tokenizer, build_tokenizer

any_ids = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["byte", "gpt2", "llama2", "t5-base", "bert-base-uncased"])
def tokenizer(request) -> Tokenizer:
    if request.param == "byte":
        return build_tokenizer(ByteTokenizerConfig(kind="byte"), list, "", Path())
    return request.getfixturevalue("shared_tokenizer")(request.param)


def streamed(stream: TextStream, ids: list[int]) -> str:
    return "".join([*map(stream.push, ids), stream.finish()])


# The first 300 ids have the byte tokens of each kind; an id beyond the vocabulary is a padded row of an embedding.
IDS = st.lists(st.integers(0, 299) | st.integers(0, 60_000), max_size=30)


@any_ids
@given(ids=IDS)
def test_a_stream_writes_what_decode_writes(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert streamed(TextStream(tokenizer), ids) == tokenizer.decode(ids)


@any_ids
@given(before=IDS, after=IDS)
def test_a_continuing_stream_writes_what_decode_appends(
    tokenizer: Tokenizer, before: list[int], after: list[int]
) -> None:
    before = [*before, *tokenizer.encode("x")]  # a complete character comes first, so no bytes join across the border
    whole = tokenizer.decode(before + after)
    assert whole == tokenizer.decode(before) + streamed(TextStream(tokenizer, continues=True), after)


def test_the_space_between_prompt_and_continuation_is_kept(shared_tokenizer: Callable[[str], Tokenizer]) -> None:
    llama = shared_tokenizer("llama2")
    ids = llama.encode("Hello world")
    assert llama.decode(ids[1:]) == "world"
    assert streamed(TextStream(llama, continues=True), ids[1:]) == " world"


def test_half_a_character_is_held_back_until_it_is_whole_or_nothing_follows() -> None:
    byte = build_tokenizer(ByteTokenizerConfig(kind="byte"), list, "", Path())
    stream = TextStream(byte)
    assert [stream.push(value) for value in "é!".encode()] == ["", "é", "!"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"
