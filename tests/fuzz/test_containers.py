"""Rows of every container against the plain readers: json, csv, pyarrow and datasets."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.data.containers import (
    INTEGERS,
    LISTS,
    TEXTS,
    VIEWS,
    Container,
    Row,
    Store,
    containers,
    datasets,
    expected_store,
    pyarrow,
    store_of,
)

# Of one column, as tables have one type each; null can stand for any.
VALUES = {
    "text": st.text(st.characters(codec="utf-8"), max_size=8),
    "lines": st.text("a,;\t|\"' \r\n\u2028\ufeff\0", max_size=6),
    "number": st.integers(-(2**63), 2**63 - 1),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "truth": st.booleans(),
    "list": st.lists(st.text("ab", max_size=2), max_size=2),
    "object": st.fixed_dictionaries({"a": st.text("ab", max_size=2)}),
}
PLAIN_IDS = st.lists(st.integers(0, 200), max_size=5)
BAD_IDS = [st.floats(0, 1), st.booleans(), st.text("12", max_size=2), st.none() | st.integers(0, 9), PLAIN_IDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lambda: tmp_path_factory.mktemp("rows")


def plain_rows(source: Row) -> list[Row]:
    """The rows of ``source``, as the library for it gives them."""
    path = Path(source["path"])
    if source["kind"] == "jsonl":
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [json.loads(line) for line in data.split(b"\n") if line.strip()]
    if source["kind"] == "csv":
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines, delimiter=source["delimiter"]))
    if source["kind"] == "parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    loaded = datasets.load_from_disk(str(path))
    loaded = loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    return loaded.data.table.to_pylist()


def store_of_texts(rows: list[Row]) -> Store:
    """By the rule of the guide: a text is a document; null is no text, and nothing is turned into text."""
    dropped = Counter[str]()
    documents = []
    for row in rows:
        text = row.get("text")
        if isinstance(text, str) and text:
            ids = list(text.encode())
            documents.append((ids, [True] * len(ids)))
        else:
            dropped["no_field" if text is None else "empty" if text == "" else "no_text"] += 1
    return expected_store(documents, **dropped)


def store_of_ids(rows: list[Row]) -> Store:
    """A list of integers is a document, with a loss where its labels are not -100 if it has labels."""
    dropped = Counter[str]()
    documents = []
    for row in rows:
        ids, labels, mask = (row.get(name) for name in ("input_ids", "labels", "attention_mask"))
        kept = [True] * (len(ids) if isinstance(ids, list) else 0) if mask is None else [one != 0 for one in mask]
        if ids is None:
            dropped["no_field"] += 1
        elif not isinstance(ids, list) or not all(type(one) is int for one in ids):
            dropped["no_ids"] += 1
        elif (labels is not None and len(labels) != len(ids)) or len(kept) != len(ids):
            dropped["bad_labels"] += 1
        elif not any(kept):
            dropped["empty"] += 1
        else:
            loss_mask = [True] * len(ids) if labels is None else [one != -100 for one in labels]
            pairs = [(one, told) for one, told, here in zip(ids, loss_mask, kept, strict=True) if here]
            documents.append(([one for one, _ in pairs], [told for _, told in pairs]))
    return expected_store(documents, **dropped)


@st.composite
def columns_of_texts(draw: st.DrawFn) -> tuple[list[Row], Container]:
    kind = draw(st.sampled_from(sorted(VALUES)))
    values = draw(st.lists(VALUES[kind] | st.none(), min_size=1, max_size=8))
    texts = kind in ("text", "lines")
    types = st.sampled_from([{"text": one} for one in TEXTS]) if texts else st.just({})
    # A value of CSV is text, whatever it was, and its writer makes an empty text of null.
    container = draw(containers(types, *(() if texts else ("jsonl", "parquet", "huggingface"))))
    return [{"text": value, "number": number} for number, value in enumerate(values)], container


@st.composite
def columns_of_ids(draw: st.DrawFn) -> tuple[list[Row], Container]:
    bad = draw(st.sampled_from([None, None, None, *BAD_IDS]))
    lists = PLAIN_IDS if bad is None else st.lists(bad, min_size=1, max_size=3)
    container_kind = draw(st.sampled_from(["jsonl", "parquet", "huggingface"]))
    rows = []
    for ids in draw(st.lists(lists | st.none(), min_size=1, max_size=6)):
        row: Row = {"input_ids": ids}
        if bad is None and ids is not None:
            size = max(0, len(ids) + draw(st.sampled_from([0, 0, 0, 1, -1])))
            ignored = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            labels = [-100 if skip else one for one, skip in zip([*ids, 7], ignored, strict=False)]
            masks = st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids))
            row |= {"labels": draw(st.none() | st.just(labels)), "attention_mask": draw(st.none() | masks)}
        rows.append(row)
    known = [one for one in LISTS if container_kind == "parquet" or one not in VIEWS]
    signed = [one for one in INTEGERS if one.startswith("i")]
    types = {
        "input_ids": st.tuples(st.sampled_from(known), st.sampled_from(INTEGERS)) if bad is None else st.none(),
        "labels": st.tuples(st.sampled_from(known), st.sampled_from(signed)),
        "attention_mask": st.tuples(st.sampled_from(known), st.sampled_from(INTEGERS)),
    }
    return rows, draw(containers(st.fixed_dictionaries(types), container_kind))


@given(made=columns_of_texts())
@example(  # a view of columns and a format that a data set was saved with
    made=(
        [{"number": 1, "text": "a"}],
        Container("huggingface", {"shape": "pandas", "first_only": True, "shards": 1, "split": False}, {}),
    )
)
def test_texts(folder: Any, made: tuple[list[Row], Container]) -> None:
    rows, container = made
    at = folder()
    source = container.write(rows, at / "in")
    assert store_of({**source, "on_error": "skip"}, at / "out") == store_of_texts(plain_rows(source))


@given(made=columns_of_ids())
@example(  # a zero and an empty text are no empty list
    made=(
        [{"input_ids": 0}, {"input_ids": ""}],
        Container("jsonl", {"ending": "", "ascii_only": True, "line_end": "\n", "nulls": True}, {}),
    )
)
def test_ids(folder: Any, made: tuple[list[Row], Container]) -> None:
    rows, container = made
    at = folder()
    source = container.write(rows, at / "in")
    found = store_of({**source, "document": {"kind": "tokens"}, "on_error": "skip"}, at / "out")
    assert found == store_of_ids(plain_rows(source))
