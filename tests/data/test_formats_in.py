from __future__ import annotations

import copy
import gzip
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.helpers import Command

from quintet.config.documents import TokenField
from quintet.config.sources import SourceConfig
from quintet.data.sources import base, megatron, reader_of, token_files
from quintet.data.sources.base import Document, Report, TextParts, TokenIds
from quintet.data.sources.reading import records
from quintet.data.sources.rows import ids_of, reading_rules
from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer
from quintet.tokenize.tokenizer_files import ChatRules

WHERE = "data.sources[0]"
END = 256
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def source_of(kind: str, path: Any, **keys: Any) -> Any:
    return TypeAdapter(SourceConfig).validate_python({"kind": kind, "path": str(path), **keys})


def read(source: Any, tokenizer: Tokenizer | None = None, report: Report | None = None) -> list[Document]:
    units, left_out = reader_of(source).index(WHERE).units()
    report = report or Report()
    report.left_out += left_out
    tokenizer = tokenizer or ByteTokenizer()
    return [document for unit in units for document in unit.documents(report, tokenizer)]


def tokens(found: list[Document]) -> list[list[int]]:
    """The documents of pieces of tokens, whole."""
    whole: list[list[int]] = [[]]
    for piece in found:
        assert isinstance(piece, TokenIds)
        whole[-1] += piece.ids.tolist()
        if not piece.continues:
            whole.append([])
    assert not whole.pop(), "the last piece of a file does not continue"
    return whole


def loss_mask(found: list[Document]) -> list[bool]:
    return [
        bool(one)
        for piece in found
        for one in (piece.loss_mask if isinstance(piece, TokenIds) and piece.loss_mask is not None else [])
    ]


def refused(source: Any, problem: str, tokenizer: Tokenizer | None = None) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        read(source, tokenizer)


def skipped(source: Any) -> tuple[list[Document], dict[str, int]]:
    report = Report()
    return read(source.model_copy(update={"on_error": "skip"}), report=report), dict(report.dropped)


# Arrays of tokens


@pytest.fixture(autouse=True, params=[3, 1 << 20], ids=["small_slices", "large_slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read does not depend on how much is read at once."""
    for module in (token_files, megatron):
        monkeypatch.setattr(module, "SLICE", request.param)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1)])
def test_an_array_is_one_document_or_ends_one_with_every_end_id(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ids = [1, 2, 3, 4, END, 5, 6]
    np.save(tmp_path / "train.npy", np.array(ids, dtype=np.int64).reshape(shape))
    assert tokens(read(source_of("npy", tmp_path, document="file"))) == [ids]
    assert tokens(read(source_of("npy", tmp_path, document="end_id"))) == [[1, 2, 3, 4, END], [5, 6]]


@given(
    st.lists(st.sampled_from([7, 8, END]), max_size=40),
    st.integers(1, 9),
    st.sampled_from(["<u2", "<i4", ">i4", "<i8"]),
)
def test_slices_neither_lose_nor_join_documents(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], size: int, dtype: str
) -> None:
    file = tmp_path_factory.mktemp("slices") / "a.npy"
    np.save(file, np.array(ids, dtype=dtype))
    before, token_files.SLICE = token_files.SLICE, size
    try:
        found = tokens(read(source_of("npy", file, document="end_id")))
        whole = tokens(read(source_of("npy", file, document="file")))
    finally:
        token_files.SLICE = before
    assert [one for document in found for one in document] == ids == [one for document in whole for one in document]
    assert all(document.index(END) == len(document) - 1 for document in found[:-1])
    assert len(whole) == bool(ids)


@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_a_part_of_an_array_is_read(kind: str, tmp_path: Path) -> None:
    ids = np.arange(10, dtype="<u2")
    if kind == "npy":
        np.save(tmp_path / "a.npy", ids)
        np.save(tmp_path / "a_labels.npy", np.where(ids % 2, ids.astype(np.int32), -100))
    else:
        (tmp_path / "a.bin").write_bytes(ids.tobytes())

    def part(**bounds: float) -> list[int]:
        found = read(source_of(kind, tmp_path / f"a.{kind}", **bounds))
        if kind == "npy":
            assert loss_mask(found) == [bool(token % 2) for document in tokens(found) for token in document]
        return [token for document in tokens(found) for token in document]

    assert part(stop=3) == [0, 1, 2]
    assert part(start=3) == [3, 4, 5, 6, 7, 8, 9]
    assert part(start=2, stop=5) == [2, 3, 4]
    # PhyAGI's validation_split: the first int(0.25 · 10) tokens, and the rest.
    assert part(stop=0.25) + part(start=0.25) == part() == ids.tolist()
    assert part(stop=0.25) == [0, 1]
    assert part(stop=1.0) == part()
    assert part(stop=1) == [0]
    assert part(start=20) == part(start=5, stop=4) == []


def test_a_fraction_above_the_whole_is_refused() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=r"1\.5 is not a fraction; write a number of tokens without a point"):
        source_of("bin", Path("a.bin"), stop=1.5)


def test_labels_beside_an_array_say_what_is_learnt(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    np.save(tmp_path / "a_labels.npy", np.array([-100, 1, -100, 3, 4]))
    np.save(tmp_path / "b_labels.npy", np.arange(2))  # the labels of nothing: an array as any other
    for path in (tmp_path / "a.npy", tmp_path / "a*.npy"):
        found = read(source_of("npy", path))
        assert tokens(found) == [[0, 1, 2, 3, 4]]
        assert loss_mask(found) == [False, True, False, True, True]
    assert tokens(read(source_of("npy", tmp_path))) == [[0, 1, 2, 3, 4], [0, 1]]


def test_a_change_of_the_labels_is_another_source(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    before = reader_of(source_of("npy", tmp_path / "a.npy")).index(WHERE).fingerprint
    np.save(tmp_path / "a_labels.npy", np.arange(5))
    assert reader_of(source_of("npy", tmp_path / "a.npy")).index(WHERE).fingerprint != before


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([1, 2], "a_labels.npy: has 2 labels, and "),
        (
            [0, 1, 9],
            "a_labels.npy, from token 0 on: label 2 is 9 where the id is 2; labels are the ids again, not shift",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: list[int], problem: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    np.save(tmp_path / "a_labels.npy", np.array(labels))
    refused(source_of("npy", tmp_path / "a.npy"), problem)


def test_arrays_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    for array, problem in [
        (np.zeros((2, 3), np.int64), f"{file}: has the shape [2, 3]; name an array of one axis"),
        (np.zeros(3), f"{file}: holds float64, not token ids"),
        (np.array([{}]), f"{file}: holds object, not token ids"),
    ]:
        np.save(file, array)
        refused(source_of("npy", file), problem)
    np.save(file, np.arange(100))
    file.write_bytes(file.read_bytes()[:-8])
    refused(source_of("npy", file), f"{file}: has 920 bytes, and its header says 928; restore the file")
    file.write_bytes(b"not numpy")
    refused(source_of("npy", file), f"{file}: is no array of NumPy")
    for header in (
        b"{'descr': (",
        b"(" * 9000,
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), 'x': 1}",
        b"\xff",
    ):
        file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        refused(source_of("npy", file), f"{file}: is no array of NumPy")
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (" + b"9" * 40 + b",)}"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    refused(source_of("npy", file), "restore the file")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000])
def test_json_beyond_what_can_be_read_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "a"}}\n{{"text": "b", "n": {value}}}\n')
    refused(source_of("jsonl", file), f"{file}:2: ")


def test_names_of_columns_show_no_control_characters(tmp_path: Path, command: Command) -> None:
    (tmp_path / "a.csv").write_text("\x1b[2Jred\x85,n\nx,1\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        f"data: {{sources: [{{kind: csv, path: {tmp_path / 'a.csv'}}}], cache_dir: {tmp_path / 'c'}}}\n"
        "tokenizer: {kind: byte}\ntrain: {steps: 1}\n"
    )
    code, _, error = command("prepare", str(tmp_path / "run.yaml"))
    assert code == 2
    assert "it has \\x1b[2Jred\\x85, n;" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_raw_ids_are_read_with_their_type(tmp_path: Path, dtype: str) -> None:
    ids = [1, 2, END, 3, 4]
    (tmp_path / "train.bin").write_bytes(np.array(ids, dtype=np.dtype(dtype).newbyteorder("<")).tobytes())
    assert tokens(read(source_of("bin", tmp_path, dtype=dtype, document="file"))) == [ids]
    assert tokens(read(source_of("bin", tmp_path, dtype=dtype, document="end_id"))) == [[1, 2, END], [3, 4]]


def test_raw_ids_of_another_type_are_refused(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    from quintet.data.prepare import prepare

    file = tmp_path / "train.bin"
    file.write_bytes(np.arange(5, dtype="<u2").tobytes())
    refused(
        source_of("bin", file, dtype="uint32"), f"{file}: 10 bytes are no whole number of uint32 ids; correct the dtype"
    )
    file.write_bytes(np.arange(400, dtype="<u2").tobytes())
    with pytest.raises(UserError, match=re.escape(f"{file}, from token 0 on: token 0 is 65536")):
        prepare(make_config({"kind": "bin", "path": str(file), "dtype": "uint32"}))


# tatm


def write_tatm(
    folder: Path, *files: list[int], name: str = "metadata.json", prefix: str = "/gone/tok", **info: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    for number, ids in enumerate(files):
        (folder / f"tok_{number}.bin").write_bytes(np.array(ids, dtype=info.get("dtype", "uint16")).tobytes())
    (folder / name).write_text(json.dumps({"tokenized_info": {"file_prefix": prefix, "tokenizer": "t5-base", **info}}))
    return folder


def t5_like(end: int = 1) -> HuggingFaceTokenizer:
    """A tokenizer of words whose document end is ``end``."""
    words = ["a", "b", "c", "d"]
    words.insert(end, "</s>")
    model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "a"}
    rules = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None, "model": model,
        "added_tokens": [{"id": end, "content": "</s>", "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False}],
    }  # fmt: skip
    return HuggingFaceTokenizer(json.dumps(rules), "</s>")


@pytest.mark.parametrize("name", ["metadata.json", "metadata.yaml", "metadata.yml"])
def test_tatm_is_read_beside_its_metadata_by_number_and_without_its_padding(tmp_path: Path, name: str) -> None:
    folder = write_tatm(tmp_path / "data", *[[number % 3 + 2, 0, 1, 4, 0, 0, 0, 0] for number in range(11)], name=name)
    (folder / "tok2_0.bin").write_bytes(b"another prefix")
    for other in ("tok_01.bin", "tok_\u0663.bin"):  # another spelling of a number is another file
        (folder / other).write_bytes(b"another")
    report = Report()
    found = tokens(read(source_of("tatm", folder), t5_like(), report))
    assert found == [document for number in range(11) for document in ([number % 3 + 2, 0, 1], [4])]
    assert report.dropped == {"padding_tokens": 44}
    assert tokens(read(source_of("tatm", folder / name), t5_like())) == found


def test_tatm_files_elsewhere_are_found_by_their_absolute_prefix(tmp_path: Path) -> None:
    elsewhere = write_tatm(tmp_path / "elsewhere", [2, 1])
    folder = write_tatm(tmp_path / "data", prefix=str(elsewhere / "tok"), tokenizer="mine")
    t5_like().write_for_transformers(folder, ())
    assert tokens(read(source_of("tatm", folder), t5_like())) == [[2, 1]]
    write_tatm(folder, [3, 1], prefix=str(tmp_path / "gone" / "tok"))
    assert tokens(read(source_of("tatm", folder), t5_like())) == [[3, 1]]


def test_the_tokenizer_beside_tatm_says_what_ends_a_document(tmp_path: Path) -> None:
    folder = write_tatm(tmp_path / "data", [3, 2, 1, 2, 4, 0], dtype="uint32", tokenizer="gpt2")
    refused(source_of("tatm", folder), "tokenizer.json: does not exist, and the id that ends a document is not known")
    t5_like(2).write_for_transformers(folder, ())
    assert tokens(read(source_of("tatm", folder), t5_like(2))) == [[3, 2], [1, 2], [4]]
    refused(
        source_of("tatm", folder), "its documents end with id 2, those of the run's tokenizer with 1; set", t5_like(1)
    )


def test_a_zero_that_ends_a_document_is_no_padding(tmp_path: Path) -> None:
    folder = write_tatm(tmp_path / "data", [3, 0, 2, 0, 0, 0])
    t5_like(0).write_for_transformers(folder, ())
    report = Report()
    assert tokens(read(source_of("tatm", folder), t5_like(0), report)) == [[3, 0], [2, 0]]
    assert report.dropped == {"padding_tokens": 2}


def test_what_is_no_tatm_is_refused(tmp_path: Path) -> None:
    refused(source_of("tatm", tmp_path), "data.sources[0].path: ")
    folder = write_tatm(tmp_path / "a", [1], dtype="float32")
    refused(source_of("tatm", folder), "metadata.json: dtype 'float32' is no type of ids")
    (folder / "metadata.json").write_text('{"name": "text"}')
    refused(source_of("tatm", folder), "metadata.json: says nothing of tokens")
    (folder / "metadata.json").write_text("{")
    refused(source_of("tatm", folder), "metadata.json: cannot be read (Expecting")
    refused(source_of("tatm", write_tatm(tmp_path / "b")), "there is no file ")
    odd = write_tatm(tmp_path / "c", [1], dtype="uint32")
    (odd / "tok_0.bin").write_bytes(b"\x01\x00\x00")
    refused(source_of("tatm", odd), "tok_0.bin: 3 bytes are no whole number of uint32 ids", t5_like())


# Megatron


def write_megatron(stem: Path, sequences: list[list[int]], bounds: list[int], code: int = 4, version: int = 1) -> None:
    dtype = {3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}[code]
    lengths = np.array([len(one) for one in sequences], dtype="<i4")
    places = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    stem.with_suffix(".bin").write_bytes(b"".join(np.array(one, dtype=dtype).tobytes() for one in sequences))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(sequences), len(bounds))
    stem.with_suffix(".idx").write_bytes(
        head + lengths.tobytes() + places.astype("<i8").tobytes() + np.array(bounds, "<i8").tobytes()
    )


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_documents_of_megatron_are_those_of_its_index(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10], [11], [12, 13]]
    write_megatron(tmp_path / "a", sequences, [0, 1, 3, 3, 5], code)
    expected = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13]]
    for path in (tmp_path / "a", tmp_path / "a.bin", tmp_path / "a.idx", tmp_path, tmp_path / "*.idx"):
        assert tokens(read(source_of("megatron", path))) == expected
    monkeypatch.setattr(base, "UNIT_BYTES", 4)
    assert len(reader_of(source_of("megatron", tmp_path)).index(WHERE).units()[0]) > 1
    assert tokens(read(source_of("megatron", tmp_path))) == expected


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    stem, source = tmp_path / "a", source_of("megatron", tmp_path / "a")
    write_megatron(stem, [[1, 2], [3]], [0, 1, 2])
    stem.with_suffix(".bin").write_bytes(bytes(8))
    refused(source, f"{stem}.idx: does not fit {stem}.bin of 8 bytes; restore both")
    write_megatron(stem, [[1, 2], [3]], [0, 1])
    refused(source, f"{stem}.idx: does not fit")
    write_megatron(stem, [[1, 2]], [0, 1], version=2)
    refused(source, f"{stem}.idx: has version 2 and type 4; only version 1 with integers is known")
    write_megatron(stem, [[1, 2]], [0, 1])
    stem.with_suffix(".idx").write_bytes(stem.with_suffix(".idx").read_bytes()[:-1])
    refused(source, f"{stem}.idx: has 61 bytes, and its header says 62; restore it")
    stem.with_suffix(".idx").write_bytes(b"TNTIDX\x00\x00" + bytes(60))
    refused(source, f"{stem}.idx: is no index of Megatron-LM")
    stem.with_suffix(".bin").unlink()
    refused(source, f"{stem}.bin does not exist beside")


# What of a row is a document


def write_rows(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` as a file of ``kind``, or as a dataset."""
    if kind == "jsonl":
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path
    if kind == "csv":
        import csv

        path = folder / "rows.csv"
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=2)
        return folder / "rows.parquet"
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(table).save_to_disk(folder / "rows")
    return folder / "rows"


KINDS = ["jsonl", "csv", "parquet", "huggingface"]
ROWS = [{"text": f'row {number}, "quoted"\nfür', "answer": str(number), "n": number} for number in range(7)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_documents(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(kind, tmp_path, ROWS)
    monkeypatch.setattr(base, "UNIT_BYTES", 64)
    assert read(source_of(kind, path)) == [row["text"] for row in ROWS]
    assert read(source_of(kind, path, document={"field": "answer", "prefix": "A: "})) == [
        f"A: {number}" for number in range(7)
    ]
    answers = {"kind": "answer", "prompt": "text", "between": " => "}
    assert read(source_of(kind, path, document=answers)) == [
        TextParts((row["text"] + " => ", row["answer"]), (False, True)) for row in ROWS
    ]
    with pytest.raises(UserError, match=r"no (column|field) 'body'"):
        read(source_of(kind, path, document={"field": "body"}))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "huggingface", "text"])
def test_the_loss_begins_behind_the_separator_which_belongs_to_the_prompt(kind: str, tmp_path: Path) -> None:
    texts = ["q: 1 #a# x #a# y", "no separator", "#a#", ""]
    if kind == "text":
        path = tmp_path / "a.txt"
        path.write_text("|".join(texts) + "|")
    else:
        path = write_rows(kind, tmp_path, [{"text": text, "n": "1"} for text in texts])
    keys = {"separator": "|"} if kind == "text" else {}
    report = Report()
    document = {"kind": "conditional", "separator": "#a#"}
    assert read(source_of(kind, path, document=document, **keys), report=report) == [
        TextParts(("q: 1 #a#", " x #a# y"), (False, True)),
        TextParts(("#a#", ""), (False, False)),
    ]
    assert report.dropped == {"without_separator": 2}
    first = read(source_of(kind, path, document={**document, "prefix": "to do: "}, **keys))[0]
    assert first == TextParts(("to do: q: 1 #a#", " x #a# y"), (False, True))


def test_an_empty_document_stays_empty_behind_a_prefix(tmp_path: Path) -> None:
    path = write_rows("jsonl", tmp_path, [{"text": ""}, {"text": "a"}])
    assert read(source_of("jsonl", path, document={"prefix": "P"})) == ["", "Pa"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_rows_of_ready_tokens(kind: str, tmp_path: Path) -> None:
    rows = [
        {"input_ids": [1, 2, 3, 0], "labels": [-100, 2, 3, -100], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [4, 5], "labels": [4, 5], "attention_mask": [1, 1]},
    ]
    found = read(source_of(kind, write_rows(kind, tmp_path, rows), document={"kind": "tokens"}))
    assert tokens(found) == [[1, 2, 3], [4, 5]]
    assert loss_mask(found) == [False, True, True, True, True]
    packed = [{**rows[0], "lengths": [1, 3]}, {**rows[1], "lengths": None}, {**rows[1], "lengths": [1, 1]}]
    document = {"kind": "tokens", "seq_lengths": "lengths"}
    (tmp_path / "packed").mkdir()
    found = read(source_of(kind, write_rows(kind, tmp_path / "packed", packed), document=document))
    assert tokens(found) == [[1], [2, 3], [4, 5], [4], [5]]
    assert loss_mask(found) == [False, True, True, True, True, True, True]
    bare = write_rows(kind, tmp_path, [{"ids": [1, 2]}])
    assert tokens(read(source_of(kind, bare, document={"kind": "tokens", "ids": "ids"}))) == [[1, 2]]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input_ids": "abc"}, "field 'input_ids' holds text, not a list of ids"),
        ({"input_ids": [1.5]}, "field 'input_ids' holds a list, not a list of ids"),
        ({"input_ids": [[1], [2, 3]]}, "field 'input_ids' holds a list, not a list of ids"),
        ({"input_ids": [1, 2], "labels": [1]}, "there are 1 labels for 2 ids"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "label 0 is 2 where the id is 1"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "'attention_mask' has 1 values for 2 ids"),
        ({"input_ids": [1, 2], "seq_lengths": [1, 2]}, "field 'seq_lengths' must hold lengths from 1 on of 2 ids"),
        ({"input_ids": [1, 2], "seq_lengths": [0, 2]}, "field 'seq_lengths' must hold lengths from 1 on of 2 ids"),
        ({"ids": [1]}, "has no field 'input_ids' (it has ids)"),
    ],
)
def test_rows_that_hold_no_tokens_are_refused(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = write_rows("jsonl", tmp_path, [row, {"input_ids": [7]}])
    source = source_of("jsonl", path, document={"kind": "tokens"})
    refused(source, f"{path}:1: {problem}")
    found, dropped = skipped(source)
    assert tokens(found) == [[7]]
    assert sum(dropped.values()) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_labels_and_masks_have_the_length_of_the_ids(pairs: list[tuple[int, bool]]) -> None:
    ids = [one for one, _ in pairs]
    labels = [one if kept else -100 for one, kept in pairs]
    found = ids_of({"input_ids": ids, "labels": labels}, TokenField(kind="tokens"), lambda: "here")
    assert isinstance(found, TokenIds)
    assert found.ids.tolist() == ids
    assert found.loss_mask is not None
    assert found.loss_mask.tolist() == [kept for _, kept in pairs]


# Conversations


@pytest.fixture(scope="module")
def chatty() -> HuggingFaceTokenizer:
    """A tokenizer of bytes with the special tokens and the template of ChatML."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["some text"], trainer)
    return HuggingFaceTokenizer(library.to_str(), "<|endoftext|>", ChatRules(template=CHATML))


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_the_assistant_and_what_the_template_puts_behind_it_is_learnt(
    kind: str, tmp_path: Path, chatty: HuggingFaceTokenizer
) -> None:
    path = write_rows(kind, tmp_path, [{"messages": TALK}])
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    expected = TextParts(
        (asked, "2<|im_end|>\n", "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>\n"),
        (False, True, False, True),
        template=True,
        ends=frozenset({chatty.end_id, chatty.special_tokens["<|im_end|>"]}),
    )
    source = source_of(kind, path, document={"kind": "chat"})
    assert read(source, chatty) == [expected]
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    named = source_of(kind, path, document={"kind": "chat", "template": str(template)})
    assert read(named, chatty) == [expected]
    units, _ = reader_of(source).index(WHERE).units()
    [bare] = [document for unit in units for document in unit.documents(Report())]
    assert bare == TextParts(tuple(message["content"] for message in TALK), (True,) * 5)


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=6))
def test_the_parts_of_a_conversation_are_what_the_template_writes(
    chatty: HuggingFaceTokenizer, roles: list[str]
) -> None:
    from quintet.data.sources.templates import Conversations
    from quintet.tokenize.chat import chat_format

    said: Any = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    found = Conversations(None, chatty).document(said)
    assert "".join(found.texts) == chat_format(chatty).render(said, answer_next=False)
    told = "".join(text for text, is_learnt in zip(found.texts, found.loss_mask, strict=True) if is_learnt)
    assert told == "".join(f"{one['content']}<|im_end|>\n" for one in said if one["role"] == "assistant")


def test_conversations_that_cannot_be_written_are_refused(tmp_path: Path, chatty: HuggingFaceTokenizer) -> None:
    template = tmp_path / "chat.jinja"
    rows = [{"messages": "hello"}, {"messages": [{"role": "pirate", "content": "arr"}]}, {"messages": TALK}]
    path = write_rows("jsonl", tmp_path, rows)
    source = source_of("jsonl", path, document={"kind": "chat"})
    refused(source, f"{path}:1: chat: there must be a list of messages", chatty)
    refused(source, "chat: the tokenizer must know special tokens", ByteTokenizer())
    refused(source, "chat: the tokenizer has no chat template; name a Jinja file", t5_like())
    report = Report()
    assert len(read(source.model_copy(update={"on_error": "skip"}), chatty, report)) == 1
    assert report.dropped == {"bad_chat": 2}
    write_rows("jsonl", tmp_path, rows[2:])
    source = source_of("jsonl", path, document={"kind": "chat", "template": str(template)})
    refused(source, "data.sources[0].document.template: ", chatty)
    for text, problem in [
        ("{{ messages | length }}{{ messages[0].content }}", "what it writes for the first 2 messages is not how it"),
        ("{{ raise_exception('no system') }}", "chat template: no system; correct the row or the template"),
    ]:
        template.write_text(text)
        refused(source, f"{path}:1: chat template: {problem}".replace("template: chat template", "template"), chatty)


def test_a_conversation_is_stored_with_its_mask(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    from quintet.data.prepare import prepare

    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
                        "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    path = write_rows("jsonl", tmp_path, [{"messages": TALK}])
    source = {"kind": "jsonl", "path": str(path), "document": {"kind": "chat", "template": str(template)}}
    found = prepare(make_config(source, tokenizer={"kind": "bpe", "vocab_size": 300}, validation=0))
    [store] = found.stores
    ids, mask = store.tokens(0, store.token_count), store.loss_mask(0, store.token_count)
    assert mask is not None
    assert found.tokenizer.decode(ids) == ("system: Be brief.\nuser: 1+1?\nassistant: 2\nuser: Sure?\nassistant: Yes\n")
    assert found.tokenizer.decode(ids[mask]) == "2\nYes\n"
    assert ids[-1] == found.tokenizer.end_id
    assert mask[-1]


def test_the_template_is_part_of_what_a_source_is(tmp_path: Path, chatty: HuggingFaceTokenizer) -> None:
    path, template = write_rows("jsonl", tmp_path, [{"messages": TALK}]), tmp_path / "chat.jinja"
    template.write_text("one")
    source = source_of("jsonl", path, document={"kind": "chat", "template": str(template)})
    before = reader_of(source).index(WHERE).fingerprint
    template.write_text("two")
    assert reader_of(source).index(WHERE).fingerprint != before
    own, other = source_of("jsonl", path, document={"kind": "chat"}), copy.copy(chatty)
    other.chat = replace(chatty.chat, template=CHATML + " ")
    assert reading_rules(source, chatty) == reading_rules(source, other)
    assert reading_rules(own, chatty) != reading_rules(own, other)
    assert reading_rules(source_of("jsonl", path), chatty) == ""


# Compressed files and files elsewhere


def compress(data: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(data)
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])  # two frames, as appended files have


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_by_their_names_ending(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNIT_BYTES", 2)  # they are not cut, however large they are
    lines = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(999)).encode()
    (tmp_path / f"a.jsonl{ending}").write_bytes(compress(lines, ending))
    (tmp_path / f"b.txt{ending}").write_bytes(compress("one|für".encode(), ending))
    (tmp_path / f"c.csv{ending}").write_bytes(compress(b"text\nx\ny\n", ending))
    assert read(source_of("jsonl", tmp_path)) == [f"row {number}" for number in range(999)]
    assert read(source_of("text", tmp_path / f"b.txt{ending}", separator="|")) == ["one", "für"]
    assert read(source_of("csv", tmp_path)) == ["x", "y"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_short_is_never_taken_for_whole(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(1)
    rows = [{"text": str(rng.integers(10**15))} for _ in range(999)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = gzip.compress(lines) if ending == ".gz" else pytest.importorskip("zstandard").compress(lines)
    for kind, name in [("jsonl", "a.jsonl"), ("text", "a.txt")]:
        file = tmp_path / f"{name}{ending}"
        for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-4] + b"abcd" if ending == ".gz" else whole[:9]):
            file.write_bytes(damaged)
            refused(source_of(kind, file), f"{file}: is damaged or cut short after ")
    found, dropped = skipped(source_of("jsonl", tmp_path / f"a.jsonl{ending}"))
    assert found == [row["text"] for row in rows[: len(found)]]
    assert dropped == {"damaged_file": 1}
    report = Report()
    assert read(source_of("text", file, on_error="skip"), report=report) == []
    assert report.left_out == [str(file)]


@given(st.lists(st.sampled_from([b"a", b"|", b"||"]), max_size=30), st.integers(1, 5), st.sampled_from([b"|", b"||"]))
def test_records_of_blocks_are_those_of_the_whole(pieces: list[bytes], size: int, separator: bytes) -> None:
    data = b"".join(pieces)
    whole = data.split(separator)
    blocks = (data[start : start + size] for start in range(0, len(data), size))
    assert [record for _, record in records(blocks, separator)] == (whole if whole[-1] else whole[:-1])


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_files_at_an_address_are_read_as_those_of_a_disk(
    memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "UNIT_BYTES", 100)
    lines = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(50)).encode()
    array = tmp_path / "a.npy"
    np.save(array, np.arange(5))
    memory.pipe(
        {
            "/in/a.jsonl": lines,
            "/in/deep/b.jsonl.gz": gzip.compress(lines),
            "/in/.hidden/c.jsonl": lines,
            "/in/t.txt": b"one|two",
            "/in/r.csv": b"text\nx\n",
            "/in/i.bin": np.arange(3, dtype="<u2").tobytes(),
            "/in/a.npy": array.read_bytes(),
            "/in/r.parquet": write_rows("parquet", tmp_path, ROWS).read_bytes(),
        }
    )
    rows = [f"row {number}" for number in range(50)]
    assert read(source_of("jsonl", "memory://in")) == rows + rows
    assert len(reader_of(source_of("jsonl", "memory://in/a.jsonl")).index(WHERE).units()[0]) > 5
    assert read(source_of("jsonl", "memory://in/*.jsonl")) == rows
    assert read(source_of("text", "memory://in/t.txt", separator="|")) == ["one", "two"]
    assert read(source_of("csv", "memory://in")) == ["x"]
    assert read(source_of("parquet", "memory://in")) == [row["text"] for row in ROWS]
    assert tokens(read(source_of("bin", "memory://in"))) == [[0, 1, 2]]
    assert tokens(read(source_of("npy", "memory://in/a.npy"))) == [[0, 1, 2, 3, 4]]
    np.save(array, np.array([0, -100, 2, 3, 4]))
    memory.pipe_file("/in/a_labels.npy", array.read_bytes())
    assert loss_mask(read(source_of("npy", "memory://in/a.npy"))) == [True, False, True, True, True]


def test_an_address_where_nothing_is_and_one_that_changes(memory: Any) -> None:
    refused(source_of("text", "memory://nowhere/a.txt"), "data.sources[0].path: there is no file at memory://nowhere")
    refused(source_of("text", "nosuch://a.txt"), "nosuch://a.txt: ")
    memory.pipe_file("/a.txt", b"one")
    source = source_of("text", "memory://a.txt")
    before = reader_of(source).index(WHERE).fingerprint
    assert reader_of(source).index(WHERE).fingerprint == before
    memory.pipe_file("/a.txt", b"two")
    assert reader_of(source).index(WHERE).fingerprint != before


def test_files_of_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    (tmp_path / "a.txt").write_text("one|two")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert read(source_of("text", f"{address}/a.txt", separator="|")) == ["one", "two"]
        refused(source_of("text", f"{address}/b.txt"), "data.sources[0].path: there is no file at http://127.0.0.1")
        server.shutdown()


# Rows that cannot be used


def test_bad_lines_stop_with_their_place_or_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "fine"}',
        b"{",
        b"[1]",
        b'{"body": 1}',
        b'{"text": 1}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
    ]
    file.write_bytes(b"\n".join([*lines, b'{"text": "too"}']) + b"\n")
    source = source_of("jsonl", file)
    assert skipped(source) == (
        ["fine", "too"],
        {"no_json": 2, "no_field": 1, "no_text": 1, "not_utf8": 1, "surrogate": 1},
    )
    for number, line in enumerate(lines[1:], 1):
        file.write_bytes(b'{"text": "fine"}\n' * number + line)
        refused(source, f"{file}:{number + 1}: ")


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,n\n"two\nlines",1\nonly\n\xff,2\n\nlast,3\n')
    source = source_of("csv", file)
    refused(source, f"{file}:4: has 1 values, and there are 2 columns")
    assert skipped(source) == (["two\nlines", "last"], {"wrong_width": 1, "not_utf8": 1})
    file.write_bytes(b'text\nfine\n"never closed')
    refused(source, f"{file}:3: is no CSV (")
    assert skipped(source) == (["fine"], {"damaged_file": 1})
    file.write_bytes(b"a\tb\n1\t2\n")
    assert read(source_of("csv", file, delimiter="\t", document={"field": "b"})) == ["2"]


def test_a_parquet_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = [{"text": str(rng.integers(10**15, size=9)), "n": number} for number in range(6)]
    file = write_rows("parquet", tmp_path, rows)
    source, whole = source_of("parquet", file), file.read_bytes()
    file.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    refused(source, f"{file}: row group 0, after row -1: is damaged or no Parquet (")
    monkeypatch.setattr(base, "UNIT_BYTES", 1)
    assert skipped(source) == ([row["text"] for row in rows[2:]], {"damaged_file": 1})
    file.write_bytes(whole[:-9])
    refused(source, f"{file}: is damaged or no Parquet (")
    report = Report()
    assert read(source_of("parquet", file, on_error="skip"), report=report) == []
    assert report.left_out == [str(file)]


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_rows_without_text_are_named_or_counted(kind: str, tmp_path: Path) -> None:
    path = write_rows(kind, tmp_path, [{"text": "a"}, {"text": None}, {"text": "c"}])
    refused(source_of(kind, path), f"{path}: row 1: field 'text' holds null; name one that does not")
    assert skipped(source_of(kind, path)) == (["a", "c"], {"no_field": 1})
