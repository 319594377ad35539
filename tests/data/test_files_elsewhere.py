"""Compressed files, files at an address, and rows that cannot be used."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.sources_read import (
    ROWS,
    WHERE,
    loss_mask,
    read,
    refused,
    skipped,
    source_of,
    tokens,
    write_rows,
)

from quintet.data.sources import base, reader_of
from quintet.data.sources.base import Report
from quintet.data.sources.reading import records

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
    monkeypatch.setattr(base, "UNIT_BYTES", 2)  # files of any size are not cut
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
