"""A token store depends only on the run file and the content of the files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import source_environment, write_jsonl

from quintet.data.prepare import prepare
from quintet.data.sources.templates import Conversations
from quintet.errors import UserError
from quintet.tokenize.chat import ChatFormat
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.tokenizer_files import ChatRules

ASKS = "{{ strftime_now('%d %b %Y %H:%M') }}{% for m in messages %}|{{ m.role }}: {{ m.content }}{% endfor %}"
RUN = {
    "name": "pure",
    "data": {
        "sources": [
            {"kind": "text", "path": "texts", "label": "texts"},
            {"kind": "jsonl", "path": "talks/*.jsonl", "label": "talks",
             "document": {"kind": "chat", "template": "chat.jinja", "date": "2024-07-26"}},
        ],
        "cleaning": {"deduplicate": {"kind": "minhash", "threshold": 0.7}},
        "validation": 0.1,
        "sequence_length": 16,
        "cache_dir": "cache",
    },
    "tokenizer": {"kind": "bpe", "vocab_size": 400},
    "train": {"steps": 1, "batch_size": 1},
}  # fmt: skip


def write_corpus(folder: Path, *, backwards: bool) -> None:
    """Write the same files with the same times, in one order or the other."""
    words = [f"word{number * number % 97}" for number in range(4000)]
    files = {f"texts/{name}.txt": " ".join(words[at * 200 : at * 200 + 300]) for at, name in enumerate("aBçÄzé_Z1")}
    talk = [{"role": "user", "content": "naïve?"}, {"role": "assistant", "content": "ja ß"}]
    files |= {f"talks/{name}.jsonl": json.dumps({"messages": talk * 3}) + "\n" for name in "bÄa"}
    files |= {"chat.jinja": ASKS, "run.json": json.dumps(RUN)}
    for name, content in sorted(files.items(), reverse=backwards):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        os.utime(file, (1, 1))


def prepared_files(folder: Path, **environment: str) -> dict[str, bytes]:
    """Return all files that a process makes when it prepares the run in ``folder``."""
    code = (
        "import json, pathlib; from quintet.config.schema import RunConfig; from quintet.data.prepare import prepare; "
        "found = prepare(RunConfig.model_validate(json.loads(pathlib.Path('run.json').read_bytes()))); "
        "pathlib.Path('cache/batch').write_bytes(found.train.batch(0).inputs.tobytes())"
    )
    whole = source_environment(**environment)
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(command, cwd=folder, env=whole, capture_output=True, timeout=200)
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, said
    assert [line for line in said.splitlines() if "EncodingWarning" in line and "/src/quintet/" in line] == []
    cache = folder / "cache"
    return {
        file.relative_to(cache).as_posix(): file.read_bytes()
        for file in sorted(cache.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


@pytest.mark.slow
def test_locale_time_zone_hash_seed_threads_and_the_order_of_files_change_no_byte(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", backwards=False)
    write_corpus(tmp_path / "other", backwards=True)
    one = prepared_files(
        tmp_path / "one", PYTHONHASHSEED="1", TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8", RAYON_NUM_THREADS="1",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    other = prepared_files(
        tmp_path / "other", PYTHONHASHSEED="2", TZ="America/Adak", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
        RAYON_NUM_THREADS="3", OMP_NUM_THREADS="3", TOKENIZERS_PARALLELISM="true",
    )  # fmt: skip
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert any(name.endswith("tokens.npy") for name in one)


@pytest.fixture(scope="module")
def dated() -> HuggingFaceTokenizer:
    """A tokenizer of bytes whose template asks for the date."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=257, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    return HuggingFaceTokenizer(library.to_str(), "<end>", ChatRules(template=ASKS))


def test_a_template_that_asks_for_the_date_is_told_that_of_the_run(dated: HuggingFaceTokenizer) -> None:
    talk: Any = [{"role": "user", "content": "a"}]
    assert "".join(Conversations(None, dated, "2024-07-26").document(talk).texts) == "26 Jul 2024 00:00|user: a"
    with pytest.raises(UserError, match=r"asks for the date \(strftime_now\); set `document.date`, such as 2024-07-26"):
        Conversations(None, dated).document(talk)
    # Without a date, the template gets today's.
    before, text, after = datetime.now(), ChatFormat(dated, ASKS).render(talk), datetime.now()
    assert text.split("|")[0] in {one.strftime("%d %b %Y %H:%M") for one in (before, after)}


@pytest.mark.parametrize("template", ["{{ [1, 2, 3] | random }}", "{{ lipsum() }}"])
def test_a_template_has_no_chance(template: str, dated: HuggingFaceTokenizer) -> None:
    with pytest.raises(UserError, match=r"chat template: .*(random|lipsum)"):
        ChatFormat(dated, template).render([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("date", ["2024-7-26", "26.07.2024", "2024-02-30", "today", ""])
def test_what_is_no_day_is_refused(date: str) -> None:
    from pydantic import ValidationError

    from quintet.config.documents import ChatField

    with pytest.raises(ValidationError, match="is not a date; write one such as 2024-07-26"):
        ChatField(kind="chat", date=date)


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a library appear to be of another version."""
    told = importlib.metadata.version

    def other(library: str) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == library else told(name))

    return other


SOURCES: dict[str, dict[str, Any]] = {
    "text": {"kind": "text", "path": "texts"},
    "jsonl": {"kind": "jsonl", "path": "talks/a.jsonl", "document": {"kind": "text", "field": "plain"}},
    "chat": RUN["data"]["sources"][1],
    "parquet": {"kind": "parquet", "path": "rows.parquet"},
    "huggingface": {"kind": "huggingface", "path": "dataset"},
    "midi": {"kind": "midi", "path": "piece.mid"},
}
BPE = {"kind": "bpe", "vocab_size": 300}
NOTES = {"kind": "exponential_time"}
MADE_BY = [
    ("text", {"kind": "byte"}, ()),
    ("text", BPE, ("tokenizers",)),
    pytest.param("text", {"kind": "tiktoken", "name": "gpt2"}, ("tiktoken",), marks=pytest.mark.slow),
    ("jsonl", {"kind": "byte"}, ()),
    ("chat", BPE, ("tokenizers", "jinja2")),
    ("parquet", {"kind": "byte"}, ("pyarrow",)),
    ("huggingface", {"kind": "char"}, ("datasets", "pyarrow")),
    ("midi", NOTES, ("mido", "symusic")),
]


@pytest.mark.parametrize(("source", "tokenizer", "libraries"), MADE_BY)
def test_a_store_that_another_version_of_a_library_made_is_made_anew(
    source: str, tokenizer: dict[str, Any], libraries: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, other_version: Callable[[str], None], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    from quintet.config.schema import RunConfig
    from quintet.data.prepare import find_prepared

    if tokenizer["kind"] == "tiktoken":
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(request.getfixturevalue("shared") / "tokenizers/tiktoken"))
    write_corpus(tmp_path, backwards=False)
    monkeypatch.chdir(tmp_path)
    _write_rows(source)
    packing = {"packing": {"kind": "pieces"}} if source == "midi" else {}
    data = {**RUN["data"], **packing, "cleaning": {}, "sources": [SOURCES[source]]}
    config = RunConfig.model_validate({**RUN, "data": data, "tokenizer": tokenizer})
    made = prepare(config)
    assert made.libraries.keys() == set(libraries)
    for library in ("tokenizers", "tiktoken", "jinja2", "datasets", "pyarrow", "mido", "symusic", "torch", "pydantic"):
        other_version(library)
        assert (find_prepared(config) is None) == (library in libraries), library
        if library not in libraries:
            continue
        again = prepare(config)
        assert again.stores[0].manifest.key != made.stores[0].manifest.key
        assert again.stores[0].manifest.made_with[library] == again.libraries[library] == "99.0"
        # Its ids have the fingerprint of the first, so that a run on the first can be continued with them.
        assert again.fingerprint == made.fingerprint


def test_a_store_names_the_libraries_of_every_kind_of_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.data.build import library_versions
    from quintet.data.sources.text import TextReader
    from quintet.tokenize.simple import ByteTokenizer

    named = {"tokenizers", "tiktoken", "jinja2", "datasets", "pyarrow", "mido", "symusic", "miditok", "datasketch"}
    before = library_versions()
    assert named <= before.keys()
    assert before.keys() & {"pytest", "ruff"} == set()
    monkeypatch.setattr(TextReader, "read_by", ("pytest",))  # as a user's own part names its libraries
    monkeypatch.setattr(ByteTokenizer, "libraries", ("ruff", "is-not-installed"), raising=False)
    added = {name: importlib.metadata.version(name) for name in ("pytest", "ruff")}
    assert library_versions() == before | added


def test_stores_of_earlier_versions_are_found(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    """The keys are those that an earlier version gave to the same files."""
    (tmp_path / "in").mkdir()
    texts = {"text": b"one#two", "jsonl": b'{"q": "one", "a": "two"}\n', "csv": b"text\none\n"}
    for kind, text in texts.items():
        file = tmp_path / f"in/a.{kind}"
        file.write_bytes(text)
        os.utime(file, (1, 1))
    answer = {"kind": "answer", "prompt": "q", "answer": "a"}
    sources = [
        {"kind": "text", "path": f"{tmp_path}/in/a.text", "separator": "#"},
        {"kind": "jsonl", "path": f"{tmp_path}/in/a.jsonl", "document": answer},
        {"kind": "csv", "path": f"{tmp_path}/in/*.csv"},
    ]
    cleaning = {"min_characters": 2, "deduplicate": {"kind": "exact"}}
    keys: dict[bool, list[str]] = {}
    for rules in ({}, cleaning):
        prepared = prepare(make_config(*sources, cleaning=rules, validation=0, sequence_length=2))
        keys[bool(rules)] = [store.manifest.key for store in prepared.stores]
    assert keys == {
        False: ["75633846702425d6", "167e7ad924a3e6a2", "9020ec957489a6f4"],
        True: ["2dbab3824965e71d", "88347685604efd96", "78d2e76fed5b2d78"],
    }


def _write_rows(source: str) -> None:
    """Write the files of sources that are no text."""
    texts = [f"{number} and some more words" for number in range(300)]
    if source == "jsonl":
        write_jsonl(Path("talks/a.jsonl"), ({"plain": text} for text in texts))
    elif source == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), "rows.parquet")
    elif source == "huggingface":
        import datasets

        datasets.Dataset.from_dict({"text": texts}).save_to_disk("dataset")
    elif source == "midi":
        from quintet.piano.midi import write_midi
        from quintet.piano.notes import notes

        number = np.arange(400)
        write_midi(notes(60 + number % 7, np.full(400, 80), number / 4, number / 4 + 0.2), Path("piece.mid"))


def test_names_that_are_no_utf8_are_read_and_said(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name, content in ((b"\xff.txt", b"some words to learn from"), (b"\xfe", b"\xff"), (b".\xfd", b"")):
        with open(folder + b"/" + name, "wb") as out:
            out.write(content)
    found = prepare(make_config({"kind": "text", "path": str(tmp_path / "in")}, validation=0))
    assert found.stores[0].document_count == 1
    assert found.stores[0].manifest.left_out_files == (f"{tmp_path}/in/\\xfe",)
    assert any(line.endswith(f"hidden: {tmp_path}/in/.\\xfd") for line in found.notes)
