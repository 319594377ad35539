"""Each kind of document in a store: its tokens, its end, its loss mask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data import shards
from quintet.data.manifest import Manifest
from quintet.data.shards import read_shard, write_shard
from quintet.data.sources.base import Document, Report, TextParts, TokenIds
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.tokenize.simple import ByteTokenizer

TOKENIZER = ByteTokenizer()
END = TOKENIZER.end_id


class WorkUnit:
    """Documents of the test, in place of a part of a source."""

    size, location = 1, "the unit"

    def __init__(self, documents: Sequence[Document], report: Report | None = None) -> None:
        self.made, self.report = documents, report or Report()

    def documents(self, report: Report, _: object) -> Iterator[Document]:
        report.left_out += self.report.left_out
        report.dropped += self.report.dropped
        return iter(self.made)


def stored(folder: Path, *units: Sequence[Document]) -> TokenStore:
    folder.mkdir(exist_ok=True)
    written = [write_shard(folder, index, WorkUnit(unit), TOKENIZER) for index, unit in enumerate(units)]  # pyright: ignore
    found = tuple(one.shard for one in written)
    counts = [sum(getattr(shard, name) for shard in found) for name in ("tokens", "documents", "bytes")]
    Manifest("key", "test", TOKENIZER.fingerprint, {}, 257, "<u2", *counts, {}, 0, (), found).write(folder)
    return TokenStore.open(folder)


def ids(*values: int, loss_mask: Sequence[bool] | None = None, continues: bool = False) -> TokenIds:
    return TokenIds(
        np.array(values, dtype=np.int64),
        "there",
        None if loss_mask is None else np.array(loss_mask, dtype=bool),
        continues,
    )


def test_texts_parts_and_ids_stand_behind_one_another(tmp_path: Path) -> None:
    documents = [
        "ab",
        TextParts(("q", "a"), (False, True)),
        ids(7, 8),
        ids(9, END),
        TextParts(("x", "y"), (True, False)),
    ]
    store = stored(tmp_path / "store", documents)
    expected = [*b"ab", END, *b"qa", END, 7, 8, END, 9, END, *b"xy", END]
    assert store.tokens(0, store.token_count).tolist() == expected
    assert store.document_ends(0, 5).tolist() == [3, 6, 9, 11, 14]
    loss_mask = store.loss_mask(0, store.token_count)
    assert loss_mask is not None
    assert loss_mask.tolist() == [True] * 3 + [False, True, True] + [True] * 5 + [True, False, False]
    assert store.manifest.bytes == 2 + 2 + 2 + 1 + 2


def test_a_store_of_which_all_is_learnt_has_no_mask(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", ["ab", TextParts(("c", "d"), (True, True)), ids(1, loss_mask=[True])])
    assert store.loss_mask(0, 3) is None
    assert not list((tmp_path / "store").glob("*.learnt.npy"))


def test_a_mask_is_whole_where_some_shards_have_none(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", ["ab"], [TextParts(("c", "d"), (False, True))], ["ef"])
    loss_mask = store.loss_mask(1, 8)
    assert loss_mask is not None
    assert loss_mask.tolist() == [True, True, False, True, True, True, True]


def test_what_stood_before_the_first_mask_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BATCH", 4)
    store = stored(tmp_path / "store", ["abcdefghij", ids(1, 2, loss_mask=[False, True])])
    loss_mask = store.loss_mask(0, store.token_count)
    assert loss_mask is not None
    assert loss_mask.tolist() == [True] * 11 + [False, True, True]


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=9), max_size=6), st.integers(1, 4))
def test_a_document_in_pieces_is_the_same_document(documents: list[list[tuple[int, bool]]], size: int) -> None:
    import tempfile

    def cut(document: list[tuple[int, bool]]) -> list[TokenIds]:
        pieces = [document[start : start + size] for start in range(0, len(document), size)] or [[]]
        return [
            ids(
                *(token for token, _ in piece),
                loss_mask=[flag for _, flag in piece],
                continues=number < len(pieces) - 1,
            )
            for number, piece in enumerate(pieces)
        ]

    with tempfile.TemporaryDirectory() as place:
        one = [ids(*(token for token, _ in it), loss_mask=[flag for _, flag in it]) for it in documents]
        whole = stored(Path(place) / "whole", one)
        pieces = stored(Path(place) / "pieces", [piece for it in documents for piece in cut(it)])
        assert asdict(whole.manifest) == asdict(pieces.manifest)
        assert whole.tokens(0, whole.token_count).tolist() == pieces.tokens(0, pieces.token_count).tolist()
        count = whole.document_count
        assert whole.hashes(0, count).tolist() == pieces.hashes(0, count).tolist()


def test_equal_documents_have_equal_hashes_wherever_they_stand(tmp_path: Path) -> None:
    store = stored(
        tmp_path / "store", ["one", "two", "one"], ["three", ids(*b"two"), TextParts(("on", "e"), (False, True))]
    )
    found = store.hashes(0, 6).tolist()
    assert found[0] == found[2] == found[5]
    assert found[1] == found[4]
    assert len(set(found)) == 3
    assert store.hashes(2, 5).tolist() == found[2:5]


def test_what_was_dropped_is_counted_by_its_reason(tmp_path: Path) -> None:
    report = Report(["image.png"], Report().dropped + Report().dropped)
    report.dropped["without_separator"] = 3
    written = write_shard(tmp_path, 0, WorkUnit(["", "a", ids()], report), TOKENIZER)  # pyright: ignore
    assert written.dropped == {"empty": 2, "without_separator": 3}
    assert written.left_out == ("image.png",)
    assert read_shard(tmp_path, 0, "<u2") == written
    assert json.loads((tmp_path / "shard-000000.json").read_text())["dropped"] == written.dropped


def test_an_id_that_the_tokenizer_lacks_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there: token 2 is 300, and the tokenizer has 257 ids"):
        stored(tmp_path / "store", [ids(1, 2, 300)])
    with pytest.raises(UserError, match=r"there: token 0 is -1"):
        stored(tmp_path / "store", [ids(-1)])
    assert not list((tmp_path / "store").glob("shard-*"))


def test_a_mask_that_a_kill_cut_short_is_noticed(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", [TextParts(("c", "d"), (False, True))])
    file = store.folder / "shard-000000.learnt.npy"
    file.write_bytes(file.read_bytes()[:-1])
    assert read_shard(store.folder, 0, "<u2") is None
    with pytest.raises(UserError, match=r"learnt\.npy: is truncated"):
        TokenStore.open(store.folder)


def test_a_shard_that_fails_lets_go_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Recorded(shards.ArrayWriter):
        def __init__(self, file: Path, dtype: np.dtype) -> None:
            super().__init__(file, dtype)
            opened.append(self._out)

    monkeypatch.setattr(shards, "ArrayWriter", Recorded)
    with pytest.raises(UserError, match="the tokenizer has 257 ids"):
        stored(tmp_path / "store", [ids(1, 2, loss_mask=[False, True]), ids(400)])
    assert len(opened) == 2
    assert all(file.closed for file in opened)
