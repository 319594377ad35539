from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data.split import TokenStream, hold_out, split, training_stream, whole

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60)
HELD_OUT = st.one_of(st.floats(0, 0.99), st.integers(1, 200).map(float))


@dataclass(frozen=True)
class Documents:
    """Documents of the given lengths; a token is its own position."""

    lengths: tuple[int, ...]

    @property
    def token_count(self) -> int:
        return sum(self.lengths)

    @property
    def document_count(self) -> int:
        return len(self.lengths)

    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(self.lengths)
        return (ends - self.lengths)[documents], ends[documents]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.uint32)


def everything(stream: TokenStream) -> list[int]:
    return stream.read(0, stream.length).tolist()


@given(lengths=LENGTHS, held_out=HELD_OUT, seed=st.integers(0, 100))
@settings(max_examples=200)
def test_the_two_streams_are_disjoint_and_together_the_whole(lengths: list[int], held_out: float, seed: int) -> None:
    store = Documents(tuple(lengths))
    train, validation = (everything(stream) for stream in split(store, held_out, seed))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert sorted(train + validation) == list(range(store.token_count))
    quota = round(held_out * store.token_count) if held_out < 1 else min(held_out, store.token_count)
    assert len(validation) == quota


@given(lengths=LENGTHS, held_out=HELD_OUT, seed=st.integers(0, 100))
@settings(max_examples=200)
def test_held_out_documents_are_whole_but_for_the_tail_of_one(lengths: list[int], held_out: float, seed: int) -> None:
    store = Documents(tuple(lengths))
    held = set(everything(split(store, held_out, seed)[1]))
    starts, stops = store.document_bounds(np.arange(len(lengths)))
    documents = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
    cut = [document for document in documents if 0 < len(held.intersection(document)) < len(document)]
    assert len(cut) <= 1
    for document in cut:
        tail = sorted(held.intersection(document))
        assert tail == list(document[-len(tail) :])


def test_a_corpus_of_one_document_gives_its_last_tokens() -> None:
    train, validation = split(Documents((1_000,)), 0.1, 1337)
    assert everything(train) == list(range(900))
    assert everything(validation) == list(range(900, 1000))


def test_more_than_one_look_at_the_documents_is_made_when_the_first_ones_are_short() -> None:
    lengths = (1,) * 5000 + (4000,)
    for seed in range(20):
        train, validation = split(Documents(lengths), 4500.0, seed)
        assert validation.length == 4500
        assert train.length == 4500


def test_seeds_hold_out_different_documents_and_all_are_equally_likely() -> None:
    store = Documents((10,) * 20)
    counts = np.zeros(20)
    for seed in range(1000):
        held = everything(split(store, 20.0, seed)[1])
        assert len(held) == 20
        counts[np.array(held[::10]) // 10] += 1
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    assert chi_squared < 19 + 5 * np.sqrt(2 * 19)


@given(lengths=LENGTHS, held_out=HELD_OUT, data=st.data())
@settings(max_examples=100)
def test_reading_anywhere_is_a_slice_of_reading_everything(lengths: list[int], held_out: float, data) -> None:
    for stream in split(Documents(tuple(lengths)), held_out, 3):
        text = everything(stream)
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, len(text)))
        assert stream.read(start, stop - start).tolist() == text[start:stop]


def test_reading_past_the_end_is_a_bug() -> None:
    stream = whole(Documents((5, 5)))
    assert everything(stream) == list(range(10))
    with pytest.raises(AssertionError):
        stream.read(8, 3)


def test_nothing_held_out_leaves_all_in_one_interval() -> None:
    train, validation = split(Documents((5, 5, 5)), 0.0, 1)
    assert validation.length == 0
    assert (train.ranges.starts.tolist(), train.ranges.stops.tolist()) == ([0], [15])


@dataclass(frozen=True)
class Masked(Documents):
    """Every third token has a loss, and every fifth is in a prompt; with ``none`` all have a loss."""

    none: bool = False

    def loss_mask(self, start: int, stop: int) -> np.ndarray | None:
        return None if self.none else np.arange(start, stop) % 3 == 0

    def prompts(self, start: int, stop: int) -> np.ndarray | None:
        return None if self.none else np.arange(start, stop) % 5 == 0

    def documents(self, start: int, stop: int) -> np.ndarray:
        return np.searchsorted(np.cumsum(self.lengths), np.arange(start, stop), side="right")


@given(lengths=LENGTHS, held_out=HELD_OUT, data=st.data())
@settings(max_examples=100)
def test_what_is_known_of_tokens_is_read_with_them(lengths: list[int], held_out: float, data) -> None:
    for stream in split(Masked(tuple(lengths)), held_out, 3):
        start = data.draw(st.integers(0, stream.length))
        length = data.draw(st.integers(0, stream.length - start))
        places = stream.read(start, length).astype(np.int64)  # a token is its own position
        loss_mask, prompts = stream.loss_mask(start, length), stream.prompts(start, length)
        if not length:
            assert (loss_mask, prompts) == (None, None)
            continue
        assert loss_mask is not None
        assert prompts is not None
        assert loss_mask.tolist() == (places % 3 == 0).tolist()
        assert prompts.tolist() == (places % 5 == 0).tolist()
        owners = np.searchsorted(np.cumsum(lengths), places, side="right")
        numbers = stream.documents(start, length)
        assert numbers[0] == 0
        assert np.diff(numbers).tolist() == (np.diff(owners) != 0).astype(int).tolist()
        unmasked = whole(Masked(tuple(lengths), none=True))
        assert (unmasked.loss_mask(0, 1), unmasked.prompts(0, 1)) == (None, None)


@given(lengths=LENGTHS, held_out=st.floats(0, 1, exclude_max=True), data=st.data())
@settings(max_examples=100)
def test_documents_that_are_left_out_are_in_neither_stream_and_do_not_count(
    lengths: list[int], held_out: float, data
) -> None:
    store = Documents(tuple(lengths))
    left_out = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))), dtype=np.int64)
    starts, stops = store.document_bounds(np.arange(len(lengths)))
    there = [place for number in range(len(lengths)) if number not in left_out
             for place in range(starts[number], stops[number])]  # fmt: skip
    held = hold_out(store, held_out, 7, left_out)
    train, validation = training_stream(store, held, left_out), TokenStream(store, held.ranges)
    assert sorted(everything(train) + everything(validation)) == there == everything(whole(store, left_out))
    assert validation.length == round(held_out * len(there))
    taken = {number for number in range(len(lengths))
             if set(everything(validation)) & set(range(starts[number], stops[number]))}  # fmt: skip
    assert set(held.documents.tolist()) == taken
    whole_ones = {number for number in taken
                  if set(range(starts[number], stops[number])) <= set(everything(validation))}  # fmt: skip
    assert taken - whole_ones == ({held.cut} - {None})
