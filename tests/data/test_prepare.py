from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import MakeConfig, contents, source_environment, wait_until

from quintet.data import build
from quintet.data.prepare import build_tokenizer_of, prepare, prepare_to
from quintet.data.samples import Windows
from quintet.data.sources import base
from quintet.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty files of 2 to 6 kB."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02d}.txt").write_text(f"file {index}: " + "some words of text, " * (100 + 5 * index))
    return folder


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small corpora are cut into units, and processes are started for them."""
    monkeypatch.setattr(base, "UNIT_BYTES", 16_000)
    monkeypatch.setattr(build, "_SMALL", 0)


def text(path: Path, **keys: Any) -> dict[str, Any]:
    return {"kind": "text", "path": str(path), **keys}


def test_the_parts_of_a_run_are_there_and_fit(make_config: MakeConfig, corpus: Path) -> None:
    prepared = prepare(make_config(text(corpus), validation=0.1))
    size = sum(file.stat().st_size + 1 for file in corpus.iterdir())
    assert prepared.validation is not None
    assert prepared.train.tokens + prepared.validation.tokens == size
    assert prepared.validation.tokens == round(0.1 * size)
    assert prepared.train.epoch_samples == (prepared.train.tokens - 1) // 8
    assert prepared.train.labels == prepared.validation.labels == (f"text {corpus}",)
    batch = prepared.train.batch(0)
    assert batch.inputs.shape == (4, 8)
    everything = "".join(file.read_text() for file in sorted(corpus.iterdir()))
    for row in batch.inputs:
        for piece in prepared.tokenizer.decode(row).split("\ufffd"):
            assert piece in everything


def test_nothing_held_out_gives_no_validation(make_config: MakeConfig, corpus: Path) -> None:
    assert prepare(make_config(text(corpus), validation=0)).validation is None


def test_validation_sources_are_used_whole_and_not_trained_on(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "held.txt").write_text("z" * 100)
    prepared = prepare(make_config(text(corpus), validation_sources=[text(tmp_path / "held.txt")], batch=64))
    assert prepared.validation is not None
    assert prepared.validation.tokens == 101
    assert prepared.validation.samples == 12
    steps = range(-(-prepared.train.epoch_samples // 64))
    assert not any((prepared.train.batch(step).inputs == ord("z")).any() for step in steps)


@pytest.mark.usefixtures("many_units")
def test_one_and_two_processes_write_the_same_bytes(make_config: MakeConfig, corpus: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {number} " + "ä" * (number % 90)}) + "\n" for number in range(800))
    (tmp_path / "rows.jsonl").write_text(rows)
    sources = [text(corpus, label="files"), {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "label": "rows"}]
    caches = [tmp_path / "one", tmp_path / "two"]
    bpe = {"kind": "bpe", "vocab_size": 300}
    prepared = [
        prepare(make_config(*sources, tokenizer=bpe, cache_dir=str(cache), processes=processes))
        for processes, cache in enumerate(caches, 1)
    ]
    assert all(len(store.manifest.shards) > 3 for store in prepared[0].stores)
    assert contents(caches[0]) == contents(caches[1])
    assert prepared[0].fingerprint == prepared[1].fingerprint


@pytest.mark.usefixtures("many_units")
def test_an_error_in_a_worker_is_the_same_error(make_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "{"x" * 300}"}}\n' for _ in range(200)) + "{}\n")
    for processes in (1, 2):
        with pytest.raises(UserError) as caught:
            prepare(make_config({"kind": "jsonl", "path": str(file)}, processes=processes))
        assert caught.value.problems[0].startswith(f"{file}:201: has no field 'text'")


KILLED = """
import os, signal, sys
from pathlib import Path
from multiprocessing import active_children
from quintet.config.schema import RunConfig
from quintet.data import build
from quintet.data.prepare import prepare
from quintet.data.sources import base

if __name__ == "__main__":
    base.UNIT_BYTES, build._SMALL = 16_000, 0
    told = 0

    def progress(stage, done, total):
        global told
        told += done > 0
        if told == 3:
            Path(sys.argv[2]).write_text(" ".join(str(child.pid) for child in active_children()))
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()), progress=progress)
"""


def written(file: Path) -> tuple[int, int, int]:
    """Return the facts that change when a file is written again, and not when it is read: inode, time, size."""
    facts = file.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


@pytest.mark.usefixtures("many_units")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_preparation_continues_without_redoing_what_was_finished(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, processes: int
) -> None:
    config = make_config(text(corpus), processes=processes)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "config.json"), str(tmp_path / "children")],
        env=source_environment(),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) == (processes if processes > 1 else 0)
    wait_until(lambda: not any(map(running, children)))  # no worker outlives its parent

    (store,) = (tmp_path / "cache" / "stores").iterdir()
    assert not (store / "manifest.json").exists()
    finished = {file.stem for file in store.glob("shard-*.json")}
    assert finished
    before = {file: written(file) for name in finished for file in store.glob(f"{name}.*")}
    stray = store / ".shard-000008.tokens.npy.1"
    stray.write_bytes(b"half a shard")
    prepared = prepare(config)
    assert {file: written(file) for file in before} == before
    assert not stray.exists()
    fresh = prepare(make_config(text(corpus), processes=1, cache_dir=str(tmp_path / "fresh")))
    assert fresh.fingerprint == prepared.fingerprint
    assert contents(fresh.stores[0].folder) == contents(prepared.stores[0].folder)


def running(pid: int) -> bool:
    """Return True if the process exists and is no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_second_preparation_reads_nothing(
    make_config: MakeConfig, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(text(corpus), tokenizer={"kind": "char"})
    first = prepare(config)

    def unexpected(*_: object) -> None:
        raise AssertionError("documents are read again")

    monkeypatch.setattr(build, "write_shard", unexpected)
    monkeypatch.setattr(base.WorkUnit, "documents", unexpected)
    second = prepare(config)
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_a_changed_source_makes_another_store(make_config: MakeConfig, corpus: Path) -> None:
    config = make_config(text(corpus))
    first = prepare(config)
    (corpus / "00.txt").write_text("changed")
    second = prepare(config)
    assert second.stores[0].folder != first.stores[0].folder
    assert second.fingerprint != first.fingerprint


def test_touching_or_moving_a_source_does_not_change_the_data(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    first = prepare(make_config(text(corpus)))
    os.utime(corpus / "00.txt", (1, 1))
    moved = corpus.rename(tmp_path / "moved")
    second = prepare(make_config(text(moved)))
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.batch(3).inputs, first.train.batch(3).inputs)


def test_a_source_that_changes_while_it_is_read_is_refused(make_config: MakeConfig, corpus: Path) -> None:
    config = make_config(text(corpus))

    def progress(stage: str, done: int, total: int) -> None:
        (corpus / "late.txt").write_text("written meanwhile")

    with pytest.raises(UserError, match="changed while it was read; run again"):
        prepare(config, progress=progress)
    assert prepare(config).stores[0].document_count == 41


def test_progress_grows_and_ends_at_the_total(make_config: MakeConfig, corpus: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(make_config(text(corpus, label="files"), tokenizer={"kind": "char"}), progress=lambda *it: told.append(it))
    stages = [stage for stage, _, _ in told]
    assert list(dict.fromkeys(stages)) == ["reading for the tokenizer", "tokenising files"]
    for stage in set(stages):
        done = [at for name, at, _ in told if name == stage]
        total = sum(file.stat().st_size for file in corpus.iterdir())
        assert done == sorted(done)
        assert done[-1] == total
        assert all(of == total for name, _, of in told if name == stage)
        assert done.count(total) == 1


def test_what_was_left_out_and_dropped_is_in_the_manifest(make_config: MakeConfig, corpus: Path) -> None:
    (corpus / "image.bin").write_bytes(b"\xff\xd8\xff")
    (corpus / "empty.txt").write_text("")
    manifest = prepare(make_config(text(corpus))).stores[0].manifest
    assert manifest.left_out == 1
    assert manifest.left_out_files == (str(corpus / "image.bin"),)
    assert manifest.dropped == {"empty": 1}
    assert manifest.documents == 40


@pytest.mark.parametrize("tokenizer", [{"kind": "byte"}, {"kind": "bpe", "vocab_size": 300}])
def test_a_store_written_by_itself_gives_the_same_run(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    config = make_config(text(corpus), tokenizer=tokenizer)
    output = tmp_path / "output"
    prepare_to(config, output)
    prepare_to(config, output)
    from_text = prepare(config)
    again = make_config({"kind": "store", "path": str(output)}, tokenizer=tokenizer, cache_dir=str(tmp_path / "c2"))
    from_store = prepare(again)
    assert from_store.fingerprint == from_text.fingerprint
    assert build_tokenizer_of(again).fingerprint == from_text.tokenizer.fingerprint
    for step in range(5):
        np.testing.assert_array_equal(from_store.train.batch(step).inputs, from_text.train.batch(step).inputs)


def test_a_store_of_another_tokenizer_is_refused(make_config: MakeConfig, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    prepare_to(make_config(text(corpus), tokenizer={"kind": "bpe", "vocab_size": 300}), output)
    store = {"kind": "store", "path": str(output)}
    with pytest.raises(UserError, match="written with another tokenizer"):
        prepare(make_config(store, tokenizer={"kind": "byte"}))
    with pytest.raises(UserError, match=r"another `tokenizer` than the run's: .*vocab_size: 300.*vocab_size: 400"):
        prepare(make_config(store, tokenizer={"kind": "bpe", "vocab_size": 400}))


def test_an_output_folder_with_something_else_is_not_touched(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    config = make_config(text(corpus))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no token store"):
        prepare_to(config, tmp_path / "mine")
    prepare_to(config, tmp_path / "output")
    with pytest.raises(UserError, match="holds another token store"):
        prepare_to(make_config(text(corpus / "00.txt")), tmp_path / "output")
    with pytest.raises(UserError, match="is a file"):
        prepare_to(config, corpus / "00.txt")
    with pytest.raises(UserError, match="there are 2 sources"):
        prepare_to(make_config(text(corpus), text(corpus / "00.txt")), tmp_path / "other")
    with pytest.raises(UserError, match="there are a store already"):
        prepare_to(make_config({"kind": "store", "path": str(tmp_path / "output")}), tmp_path / "other")


def test_too_little_text_says_how_much_there_is_and_what_to_change(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("1234567890")
    (tmp_path / "empty.txt").write_text("")
    short, empty = text(tmp_path / "short.txt"), text(tmp_path / "empty.txt")
    with pytest.raises(UserError, match=r"data\.sources\[0\]: .* has 11 tokens to train on, fewer than the 17 of one"):
        prepare(make_config(short, validation=0, sequence_length=16))
    with pytest.raises(UserError, match=r"data\.validation: 1 tokens to validate on are fewer than the 5 of one"):
        prepare(make_config(short, validation=1, sequence_length=4))
    with pytest.raises(UserError, match=r"data\.sources\[1\]: .* holds no text"):
        prepare(make_config(short, empty, validation=0))


def test_a_cache_that_cannot_be_made_is_named(make_config: MakeConfig, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_dir: .* cannot be made"):
        prepare(make_config(text(corpus), cache_dir=str(corpus / "00.txt" / "cache")))


def test_a_tokenizer_that_cannot_write_a_document_names_its_place(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    prepare_to(make_config(text(corpus), tokenizer={"kind": "char"}), output)
    (tmp_path / "greek.txt").write_text("λόγος")
    sources = [{"kind": "store", "path": str(output)}, text(tmp_path / "greek.txt")]
    with pytest.raises(UserError, match=r"greek\.txt: text: character 0 is 'λ'"):
        prepare(make_config(*sources, tokenizer={"kind": "char"}))


def test_weights_set_the_shares_of_the_sources(make_config: MakeConfig, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("0123456789" * 50)
    sources = [text(corpus, weight=3), text(tmp_path / "other.txt", weight=1)]
    data = prepare(make_config(*sources, batch=4096, validation=0)).train
    assert np.bincount(data.batch(0).sources).tolist() == [3072, 1024]


def test_shakespeare_is_split_as_nanogpt_does(make_config: MakeConfig, shared: Path) -> None:
    file = shared / "data" / "text" / "tinyshakespeare" / "input.txt"
    prepared = prepare(make_config(text(file), tokenizer={"kind": "char"}, validation=0.1, sequence_length=256))
    whole = file.read_text()
    assert prepared.tokenizer.vocab_size == len(set(whole)) + 1
    assert prepared.validation is not None
    samples = prepared.train.source_samples[0], prepared.validation.source_samples[0]
    assert all(isinstance(one, Windows) for one in samples)
    train, held_out = (one.stream for one in samples)  # pyright: ignore[reportAttributeAccessIssue]
    assert held_out.length == round(0.1 * (len(whole) + 1))
    cut = train.length
    assert abs(cut - 1_003_854) <= 1
    assert prepared.tokenizer.decode(train.read(cut - 500, 500)) == whole[cut - 500 : cut]
    assert prepared.tokenizer.decode(held_out.read(0, 500)) == whole[cut : cut + 500]


def test_real_lines_of_json_come_back_from_their_tokens(make_config: MakeConfig, shared: Path) -> None:
    file = shared / "data" / "text" / "c4_demo.jsonl"
    prepared = prepare(make_config({"kind": "jsonl", "path": str(file)}, tokenizer={"kind": "bpe", "vocab_size": 512}))
    store = prepared.stores[0]
    with file.open(encoding="utf-8") as lines:
        expected = [json.loads(line)["text"] for line in lines]
    starts, stops = store.document_bounds(np.arange(store.document_count))
    found = [
        prepared.tokenizer.decode(store.tokens(start, stop))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    assert found == expected
