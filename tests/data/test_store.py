from __future__ import annotations

import json
import os
import re
import resource
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import Command, write_jsonl

from quintet.config.cleaning import CleaningConfig
from quintet.config.sources import JsonlSource, TextSource
from quintet.data import build, verify
from quintet.data.build import StoreSpec, build_store
from quintet.data.sources import base, reader_of
from quintet.data.store import ArrayWriter, TokenStore, array_file, token_dtype
from quintet.data.verify import ArrayCheck, forget_all
from quintet.errors import UserError
from quintet.tokenize.simple import ByteTokenizer

DOCUMENTS = ["first document", "ünïcode", "x", "a longer fourth document " * 5, "fifth"]
TOKENIZER = ByteTokenizer()


def make_store(folder: Path, documents: list[str], shards: int = 3) -> TokenStore:
    """The store of ``documents``, one file each, in about ``shards`` shards."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, document in enumerate(documents):
        (corpus / f"{index:03d}.txt").write_text(document, newline="")
    size = sum(len(document.encode()) for document in documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "UNIT_BYTES", max(1, size // shards))
        source = TextSource(kind="text", path=str(corpus))
        order = StoreSpec(reader_of(source).index("data.sources[0]"), TOKENIZER, {"kind": "byte"}, folder / "store")
        return build_store(order, 1, None)


def ids_of(documents: list[str]) -> list[int]:
    return [token for document in documents if document for token in (*document.encode(), TOKENIZER.end_id)]


@given(
    documents=st.lists(st.text("aé\n ", max_size=12), min_size=1, max_size=12).filter(any),
    shards=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=25)
def test_a_store_holds_the_documents_in_order_each_with_its_end(documents: list[str], shards: int, data) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), documents, shards)
        expected = ids_of(documents)
        assert store.tokens(0, store.token_count).tolist() == expected
        assert store.manifest.dropped.get("empty", 0) == documents.count("")
        assert store.manifest.bytes == sum(len(document.encode()) for document in documents)

        start = data.draw(st.integers(0, len(expected)))
        stop = data.draw(st.integers(start, len(expected)))
        assert store.tokens(start, stop).tolist() == expected[start:stop]

        ends = [index + 1 for index, token in enumerate(expected) if token == TOKENIZER.end_id]
        assert store.document_ends(0, store.document_count).tolist() == ends
        wanted = np.array(data.draw(st.lists(st.integers(0, len(ends) - 1), max_size=5)), dtype=np.int64)
        starts, stops = store.document_bounds(wanted)
        assert stops.tolist() == [ends[index] for index in wanted]
        assert starts.tolist() == [[0, *ends][index] for index in wanted]
        for token in range(0, len(expected), 3):
            assert store.document_at(token) == sum(end <= token for end in ends)


def test_arrays_are_plain_numpy_files(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    assert len(store.manifest.shards) >= 3
    arrays = [np.load(array_file(store.folder, shard.name, "tokens")) for shard in store.manifest.shards]
    assert np.concatenate(arrays).tolist() == ids_of(DOCUMENTS)
    assert arrays[0].dtype == np.uint16


def test_the_type_is_the_smallest_that_holds_the_vocabulary() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def test_headers_have_the_promised_size_for_any_length(tmp_path: Path) -> None:
    for length in (0, 1, 1000, 123_456):
        writer = ArrayWriter(tmp_path / "a.npy", np.dtype(np.int64))
        for piece in np.array_split(np.arange(length), 3):
            writer.append(piece)
        writer.close()
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(length))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    TokenStore.open(store.folder, TOKENIZER.fingerprint)
    with pytest.raises(UserError, match=rf"manifest\.json: written with another tokenizer \(.*{TOKENIZER.fingerprint}"):
        TokenStore.open(store.folder, "0" * 16)


@pytest.mark.parametrize("what", ["tokens", "ends", "hashes"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [(-1, "is truncated: .* bytes, the manifest says"), (1, "is too long"), (None, "is missing")],
)
def test_a_file_of_another_size_is_refused(tmp_path: Path, what: str, change: int | None, fault: str) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    file = array_file(store.folder, store.manifest.shards[1].name, what)
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(content[:-1] if change < 0 else content + b"x")
    with pytest.raises(UserError, match=f"{re.escape(str(file))}: {fault}.*: delete the folder and run prepare again"):
        TokenStore.open(store.folder)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 99}, r"has format 99, this version of Quintet reads 2"),
        ({"tokens": 5}, r"is damaged \(its shards do not hold 5 tokens\)"),
        ({"surprise": 1}, r"is damaged \(surprise: "),
        ({"dtype": "banana"}, r"is damaged \(dtype: "),
        ({"dtype": "<u8"}, r"is damaged \(dtype: "),
        ({"vocab_size": None}, r"is damaged \(vocab_size: "),
        ({"shards": None}, r"is damaged \(shards: "),
        ({"shards": [{"name": "shard-000000", "tokens": "many"}]}, r"is damaged \(shards\.0\.tokens: "),
        ({"shards": [{"name": "../shard-000000"}]}, r"is damaged \(shards\.0\.name: "),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    file = make_store(tmp_path, DOCUMENTS).folder / "manifest.json"
    edit_manifest(file.parent, lambda content: content.update(changes))
    with pytest.raises(UserError, match=fault):
        TokenStore.open(file.parent)


def test_a_manifest_that_says_something_else_than_was_written_is_refused(tmp_path: Path) -> None:
    file = make_store(tmp_path, DOCUMENTS).folder / "manifest.json"
    written = json.loads(file.read_text())
    for name in written.keys() - {"checksum", "format"}:
        changed = {**written, name: [written[name]]}
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"is damaged \(it does not say what was written: another checksum\)"):
            TokenStore.open(file.parent)
    file.write_text(json.dumps(written, indent=7))  # the same, otherwise laid out
    TokenStore.open(file.parent)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 10_000, "\xff\xfe", "", "[1]", '{"format": 2, "shards": 0}'])
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    file = make_store(tmp_path, DOCUMENTS).folder / "manifest.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json: is (damaged|no manifest)") as error:
        TokenStore.open(file.parent)
    assert len(error.value.problems) == 1
    assert "\n" not in str(error.value)


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        TokenStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged"):
        TokenStore.open(tmp_path)


ARRAYS = ["tokens", "ends", "hashes", "learnt", "minhash"]


def masked_store(folder: Path) -> TokenStore:
    """A store of two shards with all kinds of arrays, and a document that is not to be used."""
    rows = [{"prompt": f"{word} " * 9, "answer": "the same few words as an answer"} for word in ("one", "two")]
    for name in "ab":
        write_jsonl(folder / f"{name}.jsonl", rows)
    source = JsonlSource.model_validate({"kind": "jsonl", "path": str(folder), "document": {"kind": "answer"}})
    cleaning = CleaningConfig.model_validate({"deduplicate": {"kind": "minhash"}})
    source_index = reader_of(source).index("here")
    return build_store(StoreSpec(source_index, TOKENIZER, {}, folder / "store", cleaning), 1, None)


def test_prompts_are_told_as_bool_wherever_reading_begins(tmp_path: Path) -> None:
    store = masked_store(tmp_path)
    loss_mask, owners = store.loss_mask(0, store.token_count), store.documents(0, store.token_count)
    assert loss_mask is not None
    expected = [not loss_mask[: at + 1][owners[: at + 1] == owners[at]].any() for at in range(store.token_count)]
    assert True in expected
    assert False in expected
    for start in range(store.token_count):
        found = store.prompts(start, store.token_count)
        assert found is not None
        assert found.dtype == bool
        assert found.tolist() == expected[start:]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the store's manifest, and remove its checksum, as in earlier versions."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def flip(file: Path, place: int, bit: int = 0) -> None:
    """Change one bit of ``file``, but neither its size nor its inode."""
    with file.open("r+b") as out:
        out.seek(place)
        [byte] = out.read(1)
        out.seek(place)
        out.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("old", [False, True])
def test_a_file_whose_bytes_changed_is_refused(tmp_path: Path, old: bool) -> None:
    store = masked_store(tmp_path)
    files = sorted(store.folder.glob("*.npy"))
    assert {file.name.split(".")[1] for file in files} == {*ARRAYS, "npy"}  # the last is dropped.npy
    if old:  # a store of an earlier version has one digest per shard, which does not include the hashes
        edit_manifest(store.folder, lambda content: [shard.pop("checksums") for shard in content["shards"]])
        files = [file for file in files if file.name.split(".")[1] not in ("hashes", "minhash")]
    for file in files:
        whole = file.read_bytes()
        for place in {128, 128 + (len(whole) - 128) // 2, len(whole) - 1}:
            TokenStore.open(store.folder)
            flip(file, place)
            with pytest.raises(UserError, match=re.escape(f"{file}: its bytes are not those that were written")):
                TokenStore.open(store.folder)
            flip(file, place)
        if not old and file.name != "dropped.npy":
            flip(file, 60)
            with pytest.raises(UserError, match=re.escape(f"{file}: its header is not that of ")):
                TokenStore.open(store.folder)
            flip(file, 60)
    TokenStore.open(store.folder)


def test_a_file_is_read_once_until_it_changes_or_all_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    read: list[str] = []
    check = ArrayCheck.problem
    monkeypatch.setattr(ArrayCheck, "problem", lambda self, file: read.append(file.name) or check(self, file))
    forget_all()
    TokenStore.open(store.folder)
    every, read[:] = sorted(read), []
    assert every == sorted(file.name for file in store.folder.glob("shard-*.npy"))
    TokenStore.open(store.folder)
    assert read == []
    os.utime(store.folder / every[0], (1, 1))
    replaced = store.folder / every[1]
    (tmp_path / "copy").write_bytes(replaced.read_bytes())
    os.replace(tmp_path / "copy", replaced)
    TokenStore.open(store.folder)
    assert sorted(read) == every[:2]
    read.clear()
    forget_all()
    TokenStore.open(store.folder)
    assert sorted(read) == every


def test_damage_that_leaves_the_time_is_found_by_verifying(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some words to learn from " * 9)
    Path("run.yaml").write_text(
        "name: r\ndata: {sources: [{kind: text, path: a.txt}], validation: 0, sequence_length: 8, cache_dir: c}\n"
        "tokenizer: {kind: byte}\ntrain: {steps: 1, batch_size: 1}\n"
    )
    assert command("prepare", "run.yaml")[0] == 0
    [file] = Path("c").rglob("*.tokens.npy")
    assert command("prepare", "run.yaml", "--verify")[0] == 0
    facts = file.stat()
    flip(file, 140)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert command("prepare", "run.yaml")[0] == 0  # as on a failing disk: only reading the file shows it
    code, _, error = command("prepare", "run.yaml", "--verify")
    assert code == 2
    assert error.startswith("error: ")
    assert "its bytes are not those that were written (another checksum): delete the folder and run prepare" in error


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """This holds even if the checksums match."""
    store = make_store(tmp_path, DOCUMENTS)
    file, place = spoil(store, 1, 7)
    checksum = zlib.crc32(file.read_bytes()[128:])
    edit_manifest(store.folder, lambda content: content["shards"][1]["checksums"].update(tokens=checksum))
    with pytest.raises(UserError, match=re.escape(f"{file}: token 7 of it is the id 513, and its tokenizer has 257")):
        TokenStore.open(store.folder)
    assert store.tokens(0, place).max() < TOKENIZER.vocab_size


def test_an_id_that_spoils_after_the_store_was_opened_is_named_where_it_is_read(tmp_path: Path) -> None:
    store = TokenStore.open(make_store(tmp_path, DOCUMENTS).folder)
    file, place = spoil(store, 1, 7)
    message = re.escape(f"{file}: token 7 of it is the id 513, and its tokenizer has 257 ids: delete the folder")
    for start, stop in [(place, place + 1), (place - 3, place + 2), (0, store.token_count)]:
        with pytest.raises(UserError, match=message):
            store.tokens(start, stop)
    with pytest.raises(UserError, match=message):
        store.tokens_at(np.array([place + 1, place, 0]))
    assert store.tokens(0, place).size == place


def spoil(store: TokenStore, shard: int, index: int) -> tuple[Path, int]:
    """Set token ``index`` of a shard to 513, and return its file and its place in the store."""
    file = array_file(store.folder, store.manifest.shards[shard].name, "tokens")
    with file.open("r+b") as out:
        out.seek(128 + 2 * index)
        out.write((513).to_bytes(2, "little"))
    return file, sum(one.tokens for one in store.manifest.shards[:shard]) + index


def test_what_a_manifest_newly_says_is_compared_with_files_that_were_found_whole(tmp_path: Path) -> None:
    """Neither size nor time nor inode of the files changed."""
    store = make_store(tmp_path, DOCUMENTS)
    TokenStore.open(store.folder)
    edit_manifest(store.folder, lambda content: content["shards"][0]["checksums"].update(tokens=1))
    with pytest.raises(UserError, match="its bytes are not those that were written"):
        TokenStore.open(store.folder)


def test_a_note_that_was_cut_short_or_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: Any) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    TokenStore.open(store.folder)
    [note] = (Path.home() / ".cache/quintet/verified").iterdir()
    for content in ("{", "[]", "null"):
        note.write_text(content)
        TokenStore.open(store.folder)
    (tmp_path / "file").write_text("no folder")
    for home in (str(tmp_path / "file"), "~"):  # the second as for a user without a home
        monkeypatch.setenv("HOME", home)
        TokenStore.open(store.folder)
        forget_all()


def test_a_store_that_nobody_may_write_to_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    for path in (*store.folder.iterdir(), store.folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path.name for path in store.folder.iterdir()}
    TokenStore.open(store.folder)
    monkeypatch.setattr(ArrayCheck, "problem", lambda self, file: "is read again")
    TokenStore.open(store.folder)
    assert {path.name for path in store.folder.iterdir()} == before
    store.folder.chmod(0o755)


def test_gigabytes_that_are_compared_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = make_store(tmp_path, DOCUMENTS), []
    forget_all()
    monkeypatch.setattr(verify, "_LONG", 1)
    TokenStore.open(store.folder, progress=lambda *facts: told.append(facts))
    total = sum(file.stat().st_size for file in store.folder.glob("shard-*.npy"))
    assert told[-1] == ("comparing store with its checksums", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    TokenStore.open(store.folder, progress=lambda *facts: pytest.fail("nothing is left to read"))


def test_the_fingerprint_follows_the_tokens_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first = make_store(tmp_path / "one", DOCUMENTS).fingerprint
    assert make_store(tmp_path / "two", DOCUMENTS).fingerprint == first
    assert make_store(tmp_path / "three", [*DOCUMENTS[:-1], "fifty"]).fingerprint != first


def test_more_shards_than_files_may_be_open_can_be_read(tmp_path: Path) -> None:
    documents = [f"document {index}" for index in range(300)]
    store = make_store(tmp_path, documents, shards=300)
    assert len(store.manifest.shards) > 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 150, hard))
    try:
        for _ in range(2):
            assert store.tokens(0, store.token_count).tolist() == ids_of(documents)
            assert store.document_count == len(store.document_ends(0, 300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_counts_beyond_32_bits_do_not_wrap(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS, shards=1)
    shard = store.manifest.shards[0]
    # The small shard once more, after five that claim a billion and a half tokens each and are never read.
    claimed = replace(shard, tokens=1_500_000_000)
    manifest = replace(store.manifest, shards=(*[claimed] * 5, shard))
    large = TokenStore(store.folder, manifest)
    assert large.token_count == 7_500_000_000 + shard.tokens
    assert large.tokens(7_500_000_000, large.token_count).tolist() == ids_of(DOCUMENTS)
    starts, stops = large.document_bounds(np.array([5 * len(DOCUMENTS) + 1]))
    assert starts.tolist() == [7_500_000_000 + len(DOCUMENTS[0]) + 1]
    assert stops.tolist() == [int(starts[0]) + len(DOCUMENTS[1].encode()) + 1]


def test_unfinished_shards_are_cleaned_and_finished_ones_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS)
    folder = store.folder
    kept = array_file(folder, "shard-000000", "tokens")
    before = kept.stat().st_ino, kept.stat().st_mtime_ns
    (folder / "manifest.json").unlink()
    (folder / "shard-000001.json").unlink()
    (folder / ".shard-000001.tokens.npy.123").write_bytes(b"half")
    (folder / "shard-999999.tokens.npy").write_bytes(b"of another cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "UNIT_BYTES", max(1, sum(len(document.encode()) for document in DOCUMENTS) // 3))
        source = TextSource(kind="text", path=str(tmp_path / "corpus"))
        order = StoreSpec(reader_of(source).index("data.sources[0]"), TOKENIZER, {"kind": "byte"}, folder)
        again = build_store(order, 1, None)
    assert again.fingerprint == store.fingerprint
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".shard")]
    assert not (folder / "shard-999999.tokens.npy").exists()
    assert not (folder / build.UNFINISHED).exists()
