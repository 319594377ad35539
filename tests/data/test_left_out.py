"""All that is skipped is reported, and so are settings that match nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import Command, MakeConfig, write_jsonl

from quintet.data.prepare import prepare
from quintet.data.sources.files import PassedOver, find_files
from quintet.errors import UserError


def names_of(folder: Path, kind: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the files of ``folder`` that a source of ``kind`` reads, and the names that it skips."""
    from pydantic import TypeAdapter

    from quintet.config.sources import SourceConfig
    from quintet.data.sources import reader_of

    source: Any = TypeAdapter(SourceConfig).validate_python({"kind": kind, "path": str(folder)})
    passed: PassedOver = {}
    files = find_files(source.path, reader_of(source).suffixes, "here", passed)
    relative = {reason: [str(Path(name).relative_to(folder)) for name in names] for reason, names in passed.items()}
    return [file.name for file in files], {reason: sorted(names) for reason, names in relative.items()}


@pytest.mark.parametrize(
    ("kind", "read", "left"),
    [
        ("jsonl", ["A.JSONL", "b.ndjson", "c.jsonl.gz", "d.JSONL.ZST", "e.Ndjson.Gz"], ["a.json", "jsonl", "x.bz2"]),
        ("csv", ["A.CSV", "b.csv.gz", "c.csv.ZST"], ["a.tsv", "x.txt"]),
        ("parquet", ["A.PARQUET", "b.parquet"], ["_SUCCESS", "a.pq"]),
        ("npy", ["A.NPY", "A_labels.NPY", "b.npy"], ["a.npz"]),
        ("bin", ["A.BIN", "b.bin"], ["a.idx"]),
        ("midi", ["A.MID", "b.Midi", "c.mid"], ["a.kar", "a.txt"]),
        ("text", ["A.TXT", "README", "a.py"], []),
    ],
)  # fmt: skip
def test_a_folder_is_read_by_the_endings_of_its_names_and_the_others_are_said(
    kind: str, read: list[str], left: list[str], tmp_path: Path
) -> None:
    for name in (*read, *left):
        (tmp_path / name).write_text("x")
    assert names_of(tmp_path, kind) == (sorted(read), {"other endings": left} if left else {})


def test_hidden_names_links_and_what_is_no_file_are_said(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for place in (folder / "deep", folder / ".git", elsewhere):
        place.mkdir(parents=True)
        (place / "a.txt").write_text(place.name)
    (folder / ".hidden").write_text("h")
    (folder / "link.txt").symlink_to(elsewhere / "a.txt")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "dangling.txt").symlink_to("nowhere")
    (folder / "long.txt").symlink_to("x" * 300)  # asking for what it names is an error
    os.mkfifo(folder / "pipe")
    assert names_of(folder, "text") == (
        ["deep/a.txt", "link.txt"],
        {
            "hidden": [".git", ".hidden"],
            "folders behind links": ["linked"],
            "no regular files": ["dangling.txt", "long.txt", "pipe"],
        },
    )
    passed: PassedOver = {}
    assert [file.name for file in find_files(str(folder / "*"), ("",), "here", passed)] == ["link.txt"]
    assert {reason.split()[0]: len(names) for reason, names in passed.items()} == {"folders": 2, "no": 3}


def lines_of(make_config: MakeConfig, source: dict[str, Any], **keys: Any) -> list[str]:
    """Return the lines of `prepare`, without the label."""
    prepared = prepare(make_config({"label": "L", **source}, validation=0, **keys))
    # tests/data/test_packing.py has the lines of packing.
    packed = ("do not fill a sample", "have no target")
    return [line.removeprefix("L: ") for line in prepared.notes if not any(said in line for said in packed)]


def rows(tmp_path: Path, *values: Any) -> dict[str, Any]:
    write_jsonl(tmp_path / "rows.jsonl", values)
    return {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}


def test_documents_without_the_separator_are_counted(make_config: MakeConfig, tmp_path: Path) -> None:
    texts = [{"text": f"question {number} #a# answer"} for number in range(17)] + [{"text": "none"}] * 33
    source = {**rows(tmp_path, *texts), "document": {"kind": "conditional", "separator": "#a#"}}
    assert lines_of(make_config, source) == ["dropped: 33 of 50 documents (without_separator)"]
    source["document"]["separator"] = "#b#"
    with pytest.raises(UserError, match=r"holds no text; dropped: 50 of 50 documents \(without_separator\)"):
        prepare(make_config(source))


@pytest.mark.parametrize("units", [1 << 20, 64])
def test_a_separator_that_stands_nowhere_is_said(
    make_config: MakeConfig, tmp_path: Path, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quintet.data.sources import base

    monkeypatch.setattr(base, "UNIT_BYTES", units)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one two three\r\n\r\nfour five six\r\n\r\n" * 9)
    source = {"kind": "text", "path": str(tmp_path / "*.txt")}
    assert lines_of(make_config, source) == []
    assert lines_of(make_config, {**source, "separator": "\r\n\r\n"}) == []
    assert lines_of(make_config, {**source, "separator": "\n\n"}) == [
        "`separator` '\\n\\n' stands nowhere in 2 files: each is one document"
    ]


def test_labels_that_no_row_has_are_said_where_the_run_file_names_them(make_config: MakeConfig, tmp_path: Path) -> None:
    ids = list(range(9))
    some = rows(tmp_path, {"input_ids": ids, "labels": [-100, *ids[1:]]}, {"input_ids": ids})
    assert lines_of(make_config, {**some, "document": {"kind": "tokens"}}) == []
    named = {**some, "document": {"kind": "tokens", "labels": "labels"}}
    assert lines_of(make_config, named) == [
        "`document.labels`: 1 of 2 documents have no 'labels': all of their tokens count in the loss"
    ]
    named["document"]["labels"] = "lables"
    assert lines_of(make_config, named) == [
        "`document.labels`: 2 of 2 documents have no 'lables': all of their tokens count in the loss"
    ]
    all_ignored = rows(tmp_path, {"input_ids": ids, "labels": ids})
    assert lines_of(make_config, {**all_ignored, "document": {"kind": "tokens", "ignore_index": -1}}) == [
        "`document.ignore_index`: no label is -1: all tokens count in the loss"
    ]


def test_documents_without_a_token_to_learn_are_counted(make_config: MakeConfig, tmp_path: Path) -> None:
    ids = list(range(1, 9))
    source = rows(tmp_path, {"input_ids": ids, "labels": ids}, *[{"input_ids": ids, "labels": [-100] * 8}] * 3)
    assert lines_of(make_config, {**source, "document": {"kind": "tokens"}}) == [
        "3 of 4 documents have no token that counts in the loss"
    ]


def test_an_end_id_that_stands_nowhere_and_empty_files_are_said(make_config: MakeConfig, tmp_path: Path) -> None:
    np.arange(40, dtype="<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"")
    assert lines_of(make_config, {"kind": "bin", "path": str(tmp_path), "document": "end_id"}) == [
        "`document: end_id`: the end id stands nowhere: each file is one document",
        f"passed over 1 names, empty files: {tmp_path / 'b.bin'}",
    ]


def test_the_command_says_what_it_leaves_out(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.JSONL").write_text('{"text": "some words to learn"}\n{"text": ""}\n')
    Path("in/readme.md").write_text("no rows")
    Path("run.yaml").write_text(
        "name: r\ndata: {sources: [{kind: jsonl, path: in}], validation: 0, sequence_length: 8, cache_dir: c}\n"
        "tokenizer: {kind: byte}\ntrain: {steps: 1, batch_size: 1}\n"
    )
    for options in ((), ("--output", "out"), ("--output", "arrays", "--format", "npy")):
        code, out, error = command("prepare", "run.yaml", *options)
        assert code == 0, error
        assert "jsonl in: dropped: 1 of 2 documents (empty)" in out + error
        assert "jsonl in: passed over 1 names, other endings: in/readme.md" in out + error


@pytest.mark.parametrize(
    "line",
    ['{"text": "a", "text": "b"}', '{"text": "a", "meta": {"n": 1, "n": 2}}', '{"text": "a", "l": [{"x": 1, "x": 1}]}'],
)
def test_a_key_that_stands_twice_is_refused_or_counted(line: str, tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "some words to learn"}\n' + line)
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    with pytest.raises(UserError, match=r"rows\.jsonl:2: has the key '(text|n|x)' twice in one object"):
        prepare(make_config(source))
    assert lines_of(make_config, {**source, "on_error": "skip"}) == ["dropped: 1 of 2 documents (key_twice)"]


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path: Path, make_config: MakeConfig) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text("text,n,text\nsome words to learn,1,other\n")
    table = pyarrow.table([["some words to learn"], [1], ["other"]], names=["text", "n", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    for kind in ("csv", "parquet"):
        source = {"kind": kind, "path": str(tmp_path / f"a.{kind}")}
        with pytest.raises(UserError, match=rf"a\.{kind}: has 2 columns 'text'; rename or remove all but one"):
            prepare(make_config(source))
    (tmp_path / "a.csv").write_text("text,n,n\nsome words to learn,1,2\n")
    assert lines_of(make_config, {"kind": "csv", "path": str(tmp_path / "a.csv")}) == []
