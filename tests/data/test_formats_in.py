"""Arrays of tokens that other programs wrote: NumPy's, raw ids, tatm's and Megatron's."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.sources_read import (
    END,
    WHERE,
    loss_mask,
    read,
    refused,
    source_of,
    t5_like,
    tokens,
)
from tests.helpers import Command

from quintet.data.sources import base, megatron, reader_of, token_files
from quintet.data.sources.base import Report
from quintet.errors import UserError

# Arrays of tokens


@pytest.fixture(autouse=True, params=[3, 1 << 20], ids=["small_slices", "large_slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not depend on how much is read at once."""
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
    np.save(tmp_path / "b_labels.npy", np.arange(2))  # labels without an array are an array as any other
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
