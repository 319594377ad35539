from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from tests.helpers import source_environment

from quintet.config.cleaning import CleaningConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import SOURCES, HuggingFaceSource, JsonlSource, PythonStdlibSource, SourceConfig, TextSource
from quintet.data.shards import write_shard
from quintet.data.sources import READERS, base, check_sources, reader_of
from quintet.data.sources import text as text_module
from quintet.data.sources.base import Report, TextPiece
from quintet.errors import UserError
from quintet.tokenize.simple import ByteTokenizer

WHERE = "data.sources[0]"


def texts_of(source: SourceConfig) -> list[str]:
    return read_all(source)[0]


def read_all(source: SourceConfig) -> tuple[list[str], list[str]]:
    """Return all documents, and the files that were skipped."""
    units, left_out = reader_of(source).index(WHERE).units()
    report = Report(left_out)
    return [text for unit in units for text in unit.documents(report)], left_out


def text(path: Path | tuple[Path, ...], separator: str | None = None) -> TextSource:
    paths = tuple(map(str, path)) if isinstance(path, tuple) else str(path)
    return TextSource(kind="text", path=paths, separator=separator)


def jsonl(path: Path, field: str = "text") -> JsonlSource:
    return JsonlSource.model_validate({"kind": "jsonl", "path": str(path), "document": {"field": field}})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for name, content in {"b.txt": "B", "a.txt": "A", "deep/er/c.md": "C", ".hidden": "no", ".git/x.txt": "no"}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


def test_a_folder_gives_all_its_visible_files_sorted_by_name(corpus: Path) -> None:
    assert texts_of(text(corpus)) == ["A", "B", "C"]


def test_patterns_enter_folders_with_two_stars_only(corpus: Path) -> None:
    assert texts_of(text(corpus / "*.txt")) == ["A", "B"]
    assert texts_of(text(corpus / "**" / "*.md")) == ["C"]


def test_paths_keep_their_order_and_a_file_of_two_patterns_is_read_once(corpus: Path) -> None:
    assert texts_of(text((corpus / "b.txt", corpus / "*.txt"))) == ["B", "A"]


def test_paths_start_at_the_working_directory_and_know_the_home(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts_of(text(Path("deep"))) == texts_of(text(Path("~/corpus/deep"))) == ["C"]


def test_a_name_with_brackets_is_a_file_when_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "data[1].txt").write_text("bracketed")
    assert texts_of(text(tmp_path / "data[1].txt")) == ["bracketed"]


def test_a_byte_order_mark_is_not_text_and_line_ends_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts_of(text(tmp_path / "a.txt")) == ["one\r\ntwo\r\n"]


def test_a_separator_cuts_documents_also_across_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stories = [f"story {number} " + "ö" * (number % 50) for number in range(500)]
    file = tmp_path / "stories.txt"
    file.write_text("<|end|>".join(stories) + "<|end|>")
    monkeypatch.setattr(base, "UNIT_BYTES", 1000)
    assert len(reader_of(text(file, "<|end|>")).index(WHERE).units()[0]) > 20
    assert texts_of(text(file, "<|end|>")) == stories
    assert texts_of(text(tmp_path, "<|end|>")) == stories


@pytest.mark.parametrize("content", [b"fine\n\xff\xfe", b"zero\0byte"])
def test_files_of_a_folder_that_are_no_text_are_left_out_and_named(
    corpus: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = corpus / "image.bin"
    binary.write_bytes(content)
    assert read_all(text(corpus)) == (["A", "B", "C"], [str(binary)])
    # A file that is large enough to be cut is skipped as a whole, although its beginning is text.
    monkeypatch.setattr(base, "UNIT_BYTES", 2)
    assert read_all(text(corpus, "\n")) == (["A", "B", "C"], [str(binary)])


def test_a_named_file_that_is_not_utf8_is_an_error_with_line_and_byte(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("line\nfür".encode("latin-1"))
    for source in (text(file), text(tmp_path / "*.txt")):
        with pytest.raises(UserError, match=re.escape(f"{file}:2: byte 6 (0xfc) is not UTF-8")):
            texts_of(source)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere.txt", "data.sources[0].path: nowhere.txt does not exist in "),
        ("*.nothing", "data.sources[0].path: *.nothing matches no file in "),
        ("empty", "data.sources[0].path: the folder empty holds no file"),
    ],
)
def test_what_is_not_there_is_an_error(
    path: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(problem)):
        reader_of(text(Path(path))).index(WHERE)


def write_lines(file: Path, *lines: Any) -> Path:
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


def test_lines_of_json_are_read_in_ranges_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": number, "text": f"row {number}\n" + "é" * (number % 70)} for number in range(1000)]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    monkeypatch.setattr(base, "UNIT_BYTES", 4000)
    units, _ = reader_of(jsonl(file)).index(WHERE).units()
    assert len(units) > 10
    assert texts_of(jsonl(file)) == [row["text"] for row in rows]


def test_a_folder_gives_its_jsonl_files_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"body": "one"}, "", "  ", {"body": "two"})
    (tmp_path / "readme.txt").write_text("not this")
    assert texts_of(jsonl(tmp_path, "body")) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'text': 1}", "is no JSON (Expecting property name enclosed in double quotes at character 1)"),
        ("[1]", "is a list, not a JSON object"),
        ({"content": "x", "id": 1}, "has no field 'text' (it has content, id)"),
        ({"text": None}, "field 'text' holds null; name one that does not"),
        ({"text": "half \ud800"}, "text: character 5 is U+D800, a surrogate"),
    ],
)
def test_a_wrong_line_is_named_also_in_a_later_range(
    line: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNIT_BYTES", 64)
    file = write_lines(tmp_path / "a.jsonl", *({"text": f"row {number}"} for number in range(30)), line)
    with pytest.raises(UserError, match=re.escape(f"{file}:31: {problem}")):
        texts_of(jsonl(file))


@pytest.fixture
def rows_on_disk(tmp_path: Path) -> Callable[[dict[str, list[Any]]], Path]:
    datasets = pytest.importorskip("datasets")

    def save(columns: dict[str, list[Any]]) -> Path:
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(tmp_path / "rows")
        return tmp_path / "rows"

    return save


def test_rows_of_a_dataset_are_read_in_ranges(
    rows_on_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"row {number}" for number in range(2500)]
    path = rows_on_disk({"body": rows, "id": list(range(2500))})
    source = HuggingFaceSource.model_validate({"kind": "huggingface", "path": str(path), "document": {"field": "body"}})
    monkeypatch.setattr(base, "UNIT_BYTES", 2000)
    assert len(reader_of(source).index(WHERE).units()[0]) > 5
    assert texts_of(source) == rows


def test_what_a_dataset_lacks_is_an_error_that_lists_what_it_has(rows_on_disk: Callable[..., Path]) -> None:
    path = str(rows_on_disk({"text": ["a", None], "id": [1, 2]}))
    for keys, problem in [
        ({"document": {"field": "body"}}, "data.sources[0].document: .* has no column 'body'; it has text, id"),
        ({"document": {"field": "id"}}, "data.sources[0].document: .*rows: column 'id' holds int64, not text"),
        ({"split": "test"}, "has no split 'test'; `split` can be train"),
        ({"name": "en"}, "has no configurations"),
        ({}, "row 1: field 'text' holds null; name one"),
    ]:
        with pytest.raises(UserError, match=problem.replace("[0]", r"\[0\]")):
            texts_of(HuggingFaceSource.model_validate({"kind": "huggingface", "path": path, **keys}))


def test_the_standard_library_is_read_without_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PythonStdlibSource(kind="python_stdlib")
    found = reader_of(source).index(WHERE)
    names = {file.name for file in found.files}
    assert {"json/decoder.py", "this.py"} <= names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    texts = texts_of(source)
    assert Path(json.decoder.__file__).read_text() in texts
    assert len(texts) == len(names)


def test_a_fingerprint_follows_the_files_and_how_they_are_read(corpus: Path, tmp_path: Path) -> None:
    def fingerprint(source: SourceConfig) -> str:
        return reader_of(source).index(WHERE).fingerprint

    first = fingerprint(text(corpus))
    assert fingerprint(text(corpus).model_copy(update={"label": "mine", "weight": 2.0})) == first
    assert fingerprint(text(corpus, "\n")) != first
    moved = corpus.rename(tmp_path / "elsewhere")
    assert fingerprint(text(moved)) == first
    facts = (moved / "a.txt").stat()
    os.utime(moved / "a.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert fingerprint(text(moved)) != first


def test_every_kind_of_source_has_one_reader() -> None:
    assert READERS.keys() == SOURCES.keys()
    assert all(issubclass(resolve_name(name), base.Reader) for name in READERS.values())


def test_a_label_is_kind_and_path_when_not_given() -> None:
    assert text(Path("a.txt")).display_name == "text a.txt"
    assert PythonStdlibSource(kind="python_stdlib").display_name == "python_stdlib"
    assert PythonStdlibSource(kind="python_stdlib", label="python").display_name == "python"


def test_checking_finds_every_missing_source_at_once(
    make_config: Callable[..., RunConfig], corpus: Path, tmp_path: Path
) -> None:
    check_sources(make_config({"kind": "text", "path": str(corpus)}, {"kind": "python_stdlib"}))
    config = make_config(
        {"kind": "text", "path": str(corpus)},
        {"kind": "text", "path": [str(corpus), str(tmp_path / "gone")]},
        {"kind": "jsonl", "path": str(corpus)},
        {"kind": "store", "path": str(tmp_path)},
        {"kind": "huggingface", "path": "./no/such/folder"},
        {"kind": "csv", "path": str(corpus)},
        {"kind": "npy", "path": str(tmp_path / "gone.npy")},
        {"kind": "tatm", "path": str(tmp_path / "gone")},
        {"kind": "megatron", "path": str(tmp_path / "gone")},
        {"kind": "text", "path": "nosuch://is.taken/on/trust"},
        validation_sources=[{"kind": "text", "path": str(tmp_path / "*.gone")}],
    )
    with pytest.raises(UserError) as caught:
        check_sources(config)
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == [
        "data.sources[1].path",
        "data.sources[2].path",
        "data.sources[3].path",
        "data.sources[4].path",
        "data.sources[5].path",
        "data.sources[6].path",
        "data.sources[7].path",
        "data.sources[8].path",
        "data.validation_sources[0].path",
    ]


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, quintet.data.sources; "
        "print(sorted({'numpy', 'torch', 'datasets', 'tokenizers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=source_environment()
    )
    assert done.stdout.strip() == "[]"


def test_a_file_of_this_disk_needs_no_library_for_addresses(corpus: Path) -> None:
    code = (
        "import sys; from quintet.data.sources.base import Report; from quintet.config.sources import TextSource; "
        "from quintet.data.sources import reader_of; "
        f"units, _ = reader_of(TextSource(kind='text', path={str(corpus)!r})).index('x').units(); "
        "print([text for unit in units for text in unit.documents(Report())], "
        "sorted({'fsspec', 'pyarrow', 'datasets', 'zstandard'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=source_environment()
    )
    assert done.stdout.strip() == "['A', 'B', 'C'] []"


def environment() -> dict[str, str]:
    import quintet

    return {**os.environ, "PYTHONPATH": str(Path(quintet.__file__).parents[1])}


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_a_large_file_in_pieces_is_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(text_module, "_READ", size)
    monkeypatch.setattr(text_module, "PIECE", 9)
    content = "\ufeffsome words, naïve ones 🎹 and more\n words " * 5
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    source = TextSource(kind="text", path=str(tmp_path / "a.txt"))
    unit = reader_of(source).index(WHERE).units()[0][0]
    found = list(unit.documents(Report(), ByteTokenizer()))
    assert len(found) > 3
    assert all(isinstance(piece, TextPiece) for piece in found)
    assert "".join(piece.text for piece in found if isinstance(piece, TextPiece)) == content[1:]
    assert [piece.continues for piece in found if isinstance(piece, TextPiece)] == [True] * (len(found) - 1) + [False]


@pytest.mark.parametrize("end", ["", "fine " * 20])
@pytest.mark.parametrize("named", [True, False])
def test_a_large_file_that_is_no_text_is_told_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, named: bool
) -> None:
    monkeypatch.setattr(text_module, "_READ", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(b"one line\nsome words and more " + b"\xc3" + end.encode())

    def told() -> str:
        unit = reader_of(TextSource(kind="text", path=str(path if named else tmp_path))).index(WHERE).units()[0][0]
        report = Report()
        try:
            assert not list(unit.documents(report, ByteTokenizer()))
        except UserError as error:
            return str(error)
        return f"left out {report.left_out}"

    small = told()
    monkeypatch.setattr(text_module, "PIECE", 9)
    assert told() == small
    assert ("a.txt:2: byte 29 (0xc3) is not UTF-8" in small) is named


def test_cleaning_judges_a_text_in_pieces_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "PIECE", 9)
    (tmp_path / "a.txt").write_text("some words and more words " * 9)
    unit = reader_of(TextSource(kind="text", path=str(tmp_path / "a.txt"))).index(WHERE).units()[0][0]
    plain = write_shard(tmp_path, 0, unit, ByteTokenizer())
    kept = write_shard(tmp_path, 1, unit, ByteTokenizer(), cleaning=CleaningConfig(min_characters=200))
    dropped = write_shard(tmp_path, 2, unit, ByteTokenizer(), cleaning=CleaningConfig(max_characters=200))
    assert plain.shard.tokens == kept.shard.tokens == 26 * 9 + 1
    assert plain.shard.digest == kept.shard.digest
    assert dropped.dropped == {"max_characters": 1}
