"""Packing of documents into samples: the examples of the guide, and properties of each packing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.packed import BOS, EOS, LETTERS, config, packed, shown, stored, words
from tests.helpers import run_values, write_jsonl

from quintet.config.documents import IGNORED
from quintet.config.packing import ChunkPackingConfig
from quintet.config.schema import RunConfig
from quintet.data import packing as packing_module
from quintet.data.batch import PADDING, ValidationData
from quintet.data.packing import document_spans, pack
from quintet.data.prepare import prepare
from quintet.data.samples import Sample
from quintet.data.sources.base import TextParts, TokenIds
from quintet.data.split import TokenRanges, split, whole
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.tokenize.bounds import text_bounds
from quintet.tokenize.simple import ByteTokenizer

LONG, SHORT = "a b c d e f g h", "x y"


@pytest.mark.parametrize(
    ("keys", "documents", "expected"),
    [
        ({"kind": "chunks", "join": False, "add_bos_eos": True}, [LONG, SHORT], ["[abcd]", "[efgh]", "[xy]"]),
        (
            {"kind": "chunks", "join": False, "add_bos_eos": True, "overlap": 1},
            [LONG, SHORT],
            ["[abcd]", "[defg]", "[gh]", "[xy]"],
        ),
        (
            {"kind": "chunks", "join": False, "add_bos_eos": True, "overlap": 2},
            [LONG, SHORT],
            ["[abcd]", "[cdef]", "[efgh]", "[xy]"],
        ),
        ({"kind": "chunks", "join": False, "add_bos_eos": True, "overlap": 1}, ["a b c d"], ["[abcd]"]),
        ({"kind": "chunks", "join": False, "keep_ends": False}, [LONG, SHORT], ["abcdef", "gh", "xy"]),
        ({"kind": "chunks", "join": False}, [LONG, SHORT], ["abcdef", "gh]", "xy]"]),
        ({"kind": "chunks", "add_bos_eos": True}, [LONG, SHORT], ["[abcd]", "[efgh]", "[xy]"]),
        ({"kind": "chunks", "add_bos_eos": True}, ["a b c d e f", SHORT], ["[abcd]", "[efxy]"]),
        ({"kind": "chunks", "add_bos_eos": True, "overlap": 1}, ["a b c d e f", SHORT], ["[abcd]", "[defx]", "[xy]"]),
        ({"kind": "chunks"}, ["a b c d e f", SHORT], ["abcdef", "]xy]"]),
        ({"kind": "document", "add_bos_eos": True}, [LONG, SHORT], ["[abcd]", "[xy]"]),
        ({"kind": "document"}, [LONG, SHORT], ["abcdef", "xy]"]),
        ({"kind": "best_fit"}, [LONG, "x y", "u", "v w z"], ["abcdef", "vwz]u]", "gh]xy]"]),
        ({"kind": "best_fit", "add_bos_eos": True}, ["a b c", "x y", "u", "v"], ["[abcu]", "[xyv]"]),
    ],
)
def test_worked_examples_with_six_tokens_a_sample(
    keys: dict[str, Any], documents: list[str], expected: list[str], tmp_path: Path
) -> None:
    assert shown(packed(tmp_path, documents, 5, **keys)) == expected


def test_behind_a_separator_alone_there_is_a_loss(tmp_path: Path) -> None:
    asked = TextParts(("a b c d e f #", "g h"), (False, True))
    keys = {"kind": "chunks", "join": False, "add_bos_eos": True}
    samples = packed(tmp_path, [asked], 5, **keys)
    # The first chunk has no loss and is dropped.
    assert shown(samples) == ["[ef#g]", "[h]"]
    loss_mask = [samples.sample(row).loss_mask for row in range(samples.count)]
    assert [mask.tolist() for mask in loss_mask if mask is not None] == [
        [False, False, False, False, True, True],
        [False, True, True],
    ]
    batch = next(iter(ValidationData((samples,), ("it",), 5).batches(8, None)))
    letter = {name: 3 + rank for rank, name in enumerate(LETTERS)}
    assert batch.targets.tolist() == [
        [IGNORED, IGNORED, IGNORED, letter["g"], EOS],
        [letter["h"], EOS, IGNORED, IGNORED, IGNORED],
    ]
    assert batch.inputs[1, :2].tolist() == [BOS, letter["h"]]
    assert batch.valid == 4


def test_documents_are_numbered_and_padding_is_none_of_them(tmp_path: Path) -> None:
    samples = packed(tmp_path, ["a b", "x y", "u"], 8, kind="best_fit")
    batch = next(iter(ValidationData((samples,), ("it",), 8).batches(8, None)))
    assert shown(samples) == ["ab]xy]u]"]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 2, PADDING]]
    assert batch.targets[0, -1] == IGNORED


documents_of_bytes = st.lists(st.text("aé日🎹 ", min_size=1, max_size=40), min_size=1, max_size=8)
any_packing = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("chunks"), "join": st.booleans(), "overlap": st.integers(0, 3), "add_bos_eos": st.booleans()}
    ),
    st.fixed_dictionaries({"kind": st.just("best_fit"), "add_bos_eos": st.booleans()}),
    st.fixed_dictionaries({"kind": st.just("document"), "add_bos_eos": st.booleans()}),
)


@settings(max_examples=150)
@given(documents_of_bytes, any_packing, st.integers(8, 14))
def test_every_token_is_in_a_sample_and_none_is_overfull(texts: list[str], keys: dict[str, Any], length: int) -> None:
    tokenizer = ByteTokenizer()
    with tempfile.TemporaryDirectory() as place:
        samples = packed(Path(place), texts, length, tokenizer, **keys)
        rows = [samples.sample(row) for row in range(samples.count)]
        assert all(2 <= row.ids.size <= length + 1 for row in rows)
        borders = keys["add_bos_eos"]
        pieces = list(zip(samples.table.starts.tolist(), samples.table.stops.tolist(), strict=True))
        assert all(start < stop for start, stop in pieces)
        covered = {place for start, stop in pieces for place in range(start, stop)}
        store = samples.store
        starts, stops = document_spans(store, whole(store).ranges, tokenizer.end_id if borders else -1)
        kept = {place for start, stop in zip(starts, stops, strict=True) for place in range(int(start), int(stop))}
        if keys["kind"] == "document":
            assert len(rows) + samples.left_out.samples == len(texts)
            assert covered <= kept
        else:
            assert covered <= kept
            assert len(kept - covered) == samples.left_out.samples  # single tokens, which have no target
            repeated = sum(stop - start for start, stop in pieces) - len(covered)
            assert repeated == 0 or keys.get("overlap", 0) > 0
        if borders:
            assert all(row.ids[0] == row.ids[-1] == tokenizer.end_id for row in rows)
        assert 0 <= samples.waste < 1


"""The beginning of a token that begins a word, or of one that goes on with it."""


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(4, 20))
def test_best_fit_cuts_only_what_is_too_long_and_fills_the_samples(lengths: list[int], length: int) -> None:
    room = length + 1
    ends = np.cumsum(lengths)
    table = packing_module._best_fit(ends - lengths, ends, room)
    used = np.add.reduceat(table.stops - table.starts, table.rows[:-1])
    assert (used <= room).all()
    # No two samples that are not more than half full: their contents would have gone into one.
    assert (2 * used <= room).sum() <= 1
    pieces = dict(zip(table.starts.tolist(), table.stops.tolist(), strict=True))
    for end, size in zip(ends.tolist(), lengths, strict=True):
        if size <= room:
            assert pieces[end - size] == end
    assert len(pieces) == sum(-(-size // room) for size in lengths)


def test_a_part_of_a_store_is_packed_within_its_borders(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    texts = [chr(97 + number) * (5 + number) for number in range(20)]
    store = stored(tmp_path / "store", texts, tokenizer)
    for stream in split(store, 0.3, 5):
        samples = pack(store, stream.ranges, config(kind="best_fit"), 10, tokenizer, tmp_path / "cache")
        inside = {
            place
            for start, stop in zip(stream.ranges.starts, stream.ranges.stops, strict=True)
            for place in range(int(start), int(stop))
        }
        bounds = zip(samples.table.starts.tolist(), samples.table.stops.tolist(), strict=True)
        assert {place for start, stop in bounds for place in range(start, stop)} == inside


def test_a_table_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed(tmp_path, [LONG, SHORT], 5, kind="best_fit")
    monkeypatch.setitem(packing_module.TABLES, "best_fit", lambda *_: pytest.fail("computed again"))
    store = TokenStore.open(tmp_path / "store")
    again = pack(store, whole(store).ranges, config(kind="best_fit"), 5, words(), tmp_path / "cache")
    assert shown(again) == shown(first)
    with pytest.raises(pytest.fail.Exception):
        pack(store, whole(store).ranges, config(kind="best_fit"), 6, words(), tmp_path / "cache")


@pytest.mark.parametrize("name", ["rows.npy", "starts.npy", "stops.npy", "left_out.npy", "checksums.json"])
def test_a_table_whose_bytes_changed_is_refused(tmp_path: Path, name: str) -> None:
    packed(tmp_path, [LONG, SHORT], 5, kind="best_fit")
    [file] = (tmp_path / "cache").rglob(name)
    store, whole_file = TokenStore.open(tmp_path / "store"), file.read_bytes()
    damages = [whole_file[:-1], b"", whole_file[:-1] + bytes([whole_file[-1] ^ 4]), whole_file + whole_file]
    for number, content in enumerate([*damages, None]):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match="delete its folder and run again"):
            pack(store, whole(store).ranges, config(kind="best_fit"), 5, words(), tmp_path / "cache")
        file.write_bytes(whole_file)
        os.utime(file, (number, number))
    pack(store, whole(store).ranges, config(kind="best_fit"), 5, words(), tmp_path / "cache")


def test_what_texts_begin_with() -> None:
    assert text_bounds(words(), around_samples=True).begin == (BOS,)
    assert text_bounds(words()).begin == ()  # a named token that the tokenizer does not put there by itself
    assert text_bounds(ByteTokenizer(), around_samples=True).begin == (ByteTokenizer().end_id,)


def test_ids_that_are_ready_keep_their_mask(tmp_path: Path) -> None:
    ready = TokenIds(np.arange(3, 9), "there", np.array([False, True, True, False, True, False]))
    samples = packed(tmp_path, [ready, ready], 20, kind="document")
    sample: Sample = samples.sample(1)
    assert sample.loss_mask is not None
    assert sample.loss_mask.tolist() == [False, True, True, False, True, False, False]


def test_an_empty_interval_has_no_samples(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", ["a b"], words())
    nothing = TokenRanges(np.empty(0, np.int64), np.empty(0, np.int64))
    for keys in ({"kind": "best_fit"}, {"kind": "chunks"}, {"kind": "chunks", "join": False}, {"kind": "document"}):
        empty = pack(store, nothing, config(**keys), 5, words(), tmp_path / "cache")
        assert (empty.count, empty.tokens, empty.waste, empty.left_out.lines()) == (0, 0, 0.0, [])


def test_the_room_that_is_left_empty_is_a_part_of_all_room(tmp_path: Path) -> None:
    with_borders = packed(tmp_path / "a", [LONG, SHORT], 5, kind="document", add_bos_eos=True)
    assert (shown(with_borders), with_borders.waste) == (["[abcd]", "[xy]"], pytest.approx(2 / 12))
    without = packed(tmp_path / "b", [LONG, SHORT], 5, kind="document")
    assert (shown(without), without.waste) == (["abcdef", "xy]"], pytest.approx(3 / 12))


def test_documents_are_packed_with_their_65536_neighbours() -> None:
    lengths = np.full((1 << 16) + 1, 5)
    lengths[[0, -1]] = 4, 1  # the room that the first leaves is not used by the first of the next block
    ends = np.cumsum(lengths)
    assert len(packing_module._best_fit(ends - lengths, ends, 5).rows) - 1 == len(lengths)
    assert len(packing_module._best_fit((ends - lengths)[1:], ends[1:], 5).rows) - 1 == len(lengths) - 1
    lengths[-2:] = 1, 5
    ends = np.cumsum(lengths)
    assert len(packing_module._best_fit(ends - lengths, ends, 5).rows) - 1 == len(lengths) - 1


def test_overlap_needs_room(make_config) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="leave no room for new ones"):
        make_config({"kind": "python_stdlib"}, packing={"kind": "chunks", "overlap": 9}, sequence_length=8)
    assert isinstance(
        make_config(
            {"kind": "python_stdlib"}, packing={"kind": "chunks", "overlap": 8}, sequence_length=8
        ).data.packing,
        ChunkPackingConfig,
    )


def test_what_packing_leaves_out_is_counted_and_said(tmp_path: Path, command) -> None:
    """Nineteen of twenty answers follow a prompt that fills the sample."""
    rows = [{"prompt": "p" * (4 if number == 7 else 20), "answer": "yes"} for number in range(20)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": {"kind": "answer"}}
    data = {"sources": [source], "sequence_length": 9, "validation": 0, "packing": {"kind": "document"}}
    run = run_values(tmp_path, name="cut", data=data, train={"batch_size": 1})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    lost = "19 of 20 samples had no target left and are not used"
    cut = f"packing cut off {19 * 14:,} tokens at the ends of 19 documents"
    for verb in ("prepare", "data"):
        code, out, err = command(verb, str(tmp_path / "run.yaml"))
        assert code == 0, err
        assert lost in " ".join((out + err).split()), verb
        assert cut in " ".join((out + err).split()), verb
    code, _, err = command("prepare", str(tmp_path / "run.yaml"), "data.sequence_length=3")
    assert code == 2
    assert "none of the 20 samples" in " ".join(err.split())


PACKINGS = [
    {"kind": "stream"},
    {"kind": "stream", "predict_next": False},
    {"kind": "document"},
    {"kind": "document", "add_bos_eos": True},
    {"kind": "chunks"},
    {"kind": "chunks", "join": False},
    {"kind": "chunks", "join": False, "overlap": 2, "keep_ends": False},
    {"kind": "chunks", "join": False, "add_bos_eos": True},
    {"kind": "best_fit"},
    {"kind": "best_fit", "keep_ends": False},
]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("document", ["text", "conditional", "answer", "chat"])
def test_every_packing_counts_the_samples_without_a_target(
    packing: dict[str, Any], document: str, tmp_path: Path
) -> None:
    """Prompts of 1 to 22 characters and answers of none to 8, in samples of 9 tokens."""
    sizes = [(1 + 5 * number % 22, 7 * number % 9) for number in range(24)]
    rows: list[dict[str, Any]] = []
    for asked, answered in [*sizes, (0, 0), (1, 0)]:
        prompt, answer = "p" * asked, "a" * answered
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rows.append({"prompt": prompt, "answer": answer, "messages": said, "text": f"{prompt}:{answer}"[: asked + 8]})
    rows += [{"prompt": "", "answer": "", "messages": [], "text": text} for text in ("", "x")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    fields = {"conditional": {"separator": ":"}, "chat": {"template": str(tmp_path / "chat.jinja")}}.get(document, {})
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "on_error": "skip", "label": "rows"}
    sources = [source | {"document": {"kind": document, **fields}}]
    values = run_values(
        tmp_path,
        name="counted",
        data={"sources": sources, "sequence_length": 9, "validation": 0, "packing": packing, "processes": 1},
        tokenizer={"kind": "bpe", "vocab_size": 280} if document == "chat" else {"kind": "byte"},
        train={"batch_size": 1},
    )
    prepared = prepare(RunConfig.model_validate(values))
    samples = prepared.train.source_samples[0]
    batches = [prepared.train.batch(step).valid for step in range(samples.count)]
    without = sum(valid == 0 for valid in batches)
    said = [line for line in prepared.notes if "target" in line]
    if packing["kind"] == "stream":
        assert samples.left_out.samples == without
        rest = prepared.stores[0].token_count - 9 * samples.count - 1
        assert [line for line in prepared.notes if "do not fill" in line] == (
            [f"rows: the last {rest:,} tokens do not fill a sample and are not used"] if rest else []
        )
        expected = f"rows: {without} of {samples.count} samples have no target: they add nothing to the loss"
        assert said == ([expected] if without else [])
    else:
        assert without == 0
        lost = samples.left_out
        assert lost.all_samples == samples.count + lost.samples
        expected = f"rows: {lost.samples} of {lost.all_samples} samples had no target left and are not used"
        assert said == ([expected] if lost.samples else [])
    again = prepare(RunConfig.model_validate(values))
    assert again.notes == prepared.notes
