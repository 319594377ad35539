"""Decoding of ids that come one by one, also ids that no text has, and stop strings against a search of the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quintet.config.tokenizer import ByteTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import TextStream, Tokenizer, build_tokenizer
from quintet.tokenize.stream import StopAt

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


# Few letters, so that stop strings occur, overlap and almost occur.
PIECES = st.lists(st.text("ab\n", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def before_first(text: str, stops: list[str]) -> str:
    """``text`` before the stop string that ends first, by a search of the whole text."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(pieces=PIECES, stops=STOPS)
def test_the_pieces_end_where_a_search_of_the_whole_text_ends_it(pieces: list[str], stops: list[str]) -> None:
    stop = StopAt(stops)
    shown = "".join([stop.push(piece) for piece in pieces])
    text = "".join(pieces)
    assert stop.stopped is any(text.find(one) >= 0 for one in stops)
    assert shown + stop.finish() == before_first(text, stops)


@given(pieces=PIECES, stop=st.text("ab\n", min_size=1, max_size=4))
def test_one_stop_string_ends_the_text_where_find_finds_it(pieces: list[str], stop: str) -> None:
    text = "".join(pieces)
    found = text.find(stop)
    cut = StopAt([stop])
    assert "".join(map(cut.push, pieces)) + cut.finish() == (text if found < 0 else text[:found])


@given(pieces=PIECES, stops=STOPS)
def test_no_more_is_held_back_than_a_stop_string_may_begin_with(pieces: list[str], stops: list[str]) -> None:
    stop, shown, text = StopAt(stops), "", ""
    for piece in pieces:
        shown, text = shown + stop.push(piece), text + piece
        if stop.stopped:
            return
        held = text[len(shown) :]
        assert shown + held == text
        beginnings = {one[:size] for one in stops for size in range(1, len(one))}
        assert held == max(
            (text[start:] for start in range(len(text)) if text[start:] in beginnings), key=len, default=""
        )


SPECIAL = ["<a>", "<b>"]
# Short pieces of few letters, so that stops with special tokens occur, overlap and end together with plain ones.
STEPS = st.lists(st.tuples(st.text("ab", max_size=2), st.sampled_from(["", *SPECIAL])), max_size=8)
SPELLED = st.lists(st.sampled_from(["a", "b", "<", ">", *SPECIAL]), min_size=1, max_size=3).map("".join)


@settings(max_examples=500)
@example(steps=[("", "<a>"), ("ab", "")], stops=["<a>a", "b"])  # in one piece, the one with the token ends first
@example(steps=[("b", "<a>"), ("ab", "")], stops=["b<a>ab", "a"])  # the one that begins later ends first
@example(steps=[("b", "<a>"), ("b", "")], stops=["a"])  # within the token
@example(steps=[("ab", "<a>"), ("b", "")], stops=["b<"])  # begins before the token and ends in it
@example(steps=[("ab", "<a>"), ("b", "")], stops=[">b"])  # begins in the token and ends after it
@example(steps=[("a", "<a>"), ("b", "")], stops=["ab"])  # as a reader sees the text
@given(steps=STEPS, stops=st.lists(SPELLED, max_size=3))
def test_a_stop_string_is_found_with_special_tokens_and_without_them(
    steps: list[tuple[str, str]], stops: list[str]
) -> None:
    """Search each reading of the text by itself; the stop string that ends first, in characters, ends the text."""
    written = [
        (character, seen)
        for piece, token in steps
        for part, seen in ((piece, True), (token, False))
        for character in part
    ]
    expected = None
    for end in range(1, len(written) + 1):
        some = written[:end]
        whole, text = "".join(one for one, _ in some), "".join(one for one, seen in some if seen)
        cuts = [len(text) - len(stop) for stop in stops if some[-1][1] and text.endswith(stop)]
        cuts += [sum(seen for _, seen in some[: -len(stop)]) for stop in stops if whole.endswith(stop)]
        if cuts:
            expected = text[: min(cuts)]
            break
    stop = StopAt(stops)
    found = "".join([stop.push(*step) for step in steps]) + stop.finish()
    assert stop.stopped is (expected is not None)
    assert found == ("".join(one for one, seen in written if seen) if expected is None else expected)


def test_nothing_follows_a_stop_string() -> None:
    stop = StopAt(["END"])
    assert (stop.push("one EN"), stop.push("D two"), stop.push(" END three"), stop.finish()) == ("one ", "", "", "")


def test_of_two_that_end_together_the_longer_is_left_out() -> None:
    stop = StopAt(["User:", "\n\nUser:"])
    assert stop.push("yes\n\nUs") + stop.push("er: why") == "yes"


@pytest.mark.parametrize(("stop", "text"), [("o<e", "hell"), ("lo<end>", "hel"), ("<", "hello"), ("o>", "hello")])
def test_what_the_token_that_ends_a_text_makes_a_stop_string_is_left_out(stop: str, text: str) -> None:
    cut = StopAt([stop])
    assert cut.push("hello") + cut.finish(["<s>", "<end>"]) == text


def test_a_dropped_space_stands_between_a_special_token_and_a_word() -> None:
    cut = StopAt(["> the"])
    assert cut.push("", "<s>") + cut.push("the", dropped=" ") == ""
    assert cut.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        StopAt(["", "a"])
