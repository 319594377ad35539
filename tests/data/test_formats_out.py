"""Data that are written in another format and read again are the same."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import MakeConfig, write_jsonl
from typer.testing import CliRunner

from quintet.config.schema import RunConfig
from quintet.config.sources import NpySource, TatmSource
from quintet.data import formats
from quintet.data.formats import write_format
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError

LINES = [f"question {number} # answer {number * 7 % 13} für" for number in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "a.jsonl"
    write_jsonl(file, ({"text": line} for line in LINES))
    return file


@pytest.fixture(params=[False, True], ids=["all_learnt", "masked"])
def masked(request: pytest.FixtureRequest) -> bool:
    return request.param


def config_of(make_config: MakeConfig, corpus: Path, *, masked: bool, **data: Any) -> RunConfig:
    document = {"kind": "conditional", "separator": "#"} if masked else {}
    source = {"kind": "jsonl", "path": str(corpus), "document": document}
    return make_config(source, tokenizer={"kind": "bpe", "vocab_size": 300}, **{"validation": 0.2, **data})


def again(make_config: MakeConfig, original: Prepared, tmp_path: Path, source: dict[str, Any], **data: Any) -> Prepared:
    """``source`` prepared with the tokenizer of ``original``."""
    original.tokenizer.save(tmp_path / "tokenizer")
    tokenizer = {"kind": "huggingface", "path": str(tmp_path / "tokenizer")}
    return prepare(make_config(source, tokenizer=tokenizer, **{"validation": 0, **data}))


def tokens_of(parts: Any) -> tuple[list[int], list[bool]]:
    """Return all tokens of samples that are cut from streams, and their loss mask."""
    ids, loss_mask = [], []
    for one, mask in formats.slices(formats.streams_of(parts, "test")):
        ids += one.tolist()
        loss_mask += [True] * one.size if mask is None else mask.tolist()
    return ids, loss_mask


def samples_of(parts: Any) -> list[tuple[list[int], list[bool]]]:
    found = [part.sample(index) for part in parts for index in range(part.count)]
    return [
        (one.ids.tolist(), [True] * one.ids.size if one.loss_mask is None else one.loss_mask.tolist()) for one in found
    ]


@pytest.fixture(params=[5, 1 << 20], ids=["small_slices", "large_slices"])
def _slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SLICE", request.param)


@pytest.mark.usefixtures("_slices")
def test_arrays_are_read_as_they_were_written(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, masked: bool
) -> None:
    original = prepare(config_of(make_config, corpus, masked=masked))
    write_format(original, "npy", tmp_path / "out")
    names = {"train.npy", "validation.npy"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == (
        names | {"train_labels.npy", "validation_labels.npy"} if masked else names
    )
    assert original.validation is not None
    for name, data in [("train", original.train), ("validation", original.validation)]:
        source = {"kind": "npy", "path": str(tmp_path / "out" / f"{name}.npy"), "document": "end_id"}
        ids, loss_mask = tokens_of(data.source_samples)
        assert np.load(tmp_path / "out" / f"{name}.npy").tolist() == ids
        found_ids, found_learnt = tokens_of(again(make_config, original, tmp_path, source).train.source_samples)
        end = original.tokenizer.end_id
        closed = ids if ids[-1] == end else [*ids, end]  # the tail of a text that was cut for the validation
        assert found_ids == closed
        assert found_learnt[: len(ids)] == loss_mask
        assert all(loss_mask) != masked


@pytest.mark.usefixtures("_slices")
def test_tatm_is_read_as_it_was_written(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "FILE_TOKENS", 100)
    original = prepare(config_of(make_config, corpus, masked=False, validation=0))
    write_format(original, "tatm", tmp_path / "out")
    files = sorted((tmp_path / "out" / "train").glob("tokenized_*.bin"))
    if formats.SLICE < 100:
        assert len(files) > 3
        ids = [np.fromfile(file, "<u2") for file in files]
        longest = max(map(len, LINES)) + 1
        assert all(one.size <= 100 + longest and one[-1] == original.tokenizer.end_id for one in ids)
    source = {"kind": "tatm", "path": str(tmp_path / "out" / "train")}
    found = again(make_config, original, tmp_path, source)
    assert tokens_of(found.train.source_samples) == tokens_of(original.train.source_samples)
    assert found.stores[0].document_count == len(LINES)
    assert found.stores[0].hashes(0, len(LINES)).tolist() == original.stores[0].hashes(0, len(LINES)).tolist()


def test_rows_of_a_dataset_are_the_samples(make_config: MakeConfig, corpus: Path, tmp_path: Path, masked: bool) -> None:
    datasets = pytest.importorskip("datasets")
    original = prepare(config_of(make_config, corpus, masked=masked))
    write_format(original, "huggingface", tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert original.validation is not None
    for name, data in [("train", original.train), ("validation", original.validation)]:
        expected = samples_of(data.source_samples)
        assert len(expected) == len(found[name]) > 0
        for row, (ids, loss_mask) in zip(found[name], expected, strict=True):
            assert row["input_ids"] == ids
            assert row["labels"] == [one if kept else -100 for one, kept in zip(ids, loss_mask, strict=True)]
            assert row["attention_mask"] == [1] * len(ids)


def test_packed_documents_of_a_dataset_keep_their_borders(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, masked: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    packing = {"packing": {"kind": "best_fit"}, "sequence_length": 300, "validation": 0}
    original = prepare(config_of(make_config, corpus, masked=masked, **packing))
    write_format(original, "huggingface", tmp_path / "out")
    rows = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    (stream,) = original.train.source_samples
    for index, row in enumerate(rows):
        documents = stream.sample(index).documents
        assert documents is not None
        assert row["seq_lengths"] == [len(list(group)) for _, group in groupby(documents.tolist())]
    assert max(map(len, rows["seq_lengths"])) > 1
    source = {"kind": "huggingface", "path": str(tmp_path / "out"), "document": {"kind": "tokens"}}
    found, first = again(make_config, original, tmp_path, source, **packing).stores[0], original.stores[0]
    assert sorted(found.hashes(0, found.document_count)) == sorted(first.hashes(0, len(LINES)))
    whole = {**source, "document": {"kind": "tokens", "seq_lengths": None}}
    assert again(make_config, original, tmp_path, whole, **packing).stores[0].document_count == len(rows)


def test_documents_of_a_dataset_are_read_as_they_were_written(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, masked: bool
) -> None:
    pytest.importorskip("datasets")
    packing = {"packing": {"kind": "document", "keep_ends": True}, "sequence_length": 300, "validation": 0}
    original = prepare(config_of(make_config, corpus, masked=masked, **packing))
    write_format(original, "huggingface", tmp_path / "out")
    source = {"kind": "huggingface", "path": str(tmp_path / "out"), "document": {"kind": "tokens"}}
    found = again(make_config, original, tmp_path, source, **packing)
    assert samples_of(found.train.source_samples) == samples_of(original.train.source_samples)
    assert found.stores[0].document_count == len(LINES)


def test_a_stream_format_refuses_what_it_cannot_hold(make_config: MakeConfig, corpus: Path, tmp_path: Path) -> None:
    masked = prepare(config_of(make_config, corpus, masked=True))
    with pytest.raises(UserError, match="--format tatm cannot say which tokens have no loss"):
        write_format(masked, "tatm", tmp_path / "out")
    packed = prepare(
        config_of(
            make_config, corpus, masked=False, packing={"kind": "document", "keep_ends": True}, sequence_length=300
        )
    )
    for form in ("npy", "tatm"):
        with pytest.raises(UserError, match=rf"--format {form} holds one stream of tokens, and data\.packing"):
            write_format(packed, form, tmp_path / "out")
    with pytest.raises(UserError, match=r"--format tatm needs a tokenizer\.json"):
        write_format(prepare(make_config({"kind": "jsonl", "path": str(corpus)})), "tatm", tmp_path / "out")
    assert not [file for file in tmp_path.iterdir() if "out" in file.name], "nothing half-written stays"


def test_text_that_is_cut_at_a_zero_is_no_padding(tmp_path: Path) -> None:
    class Cut:
        length = 3

        def read(self, position: int, length: int) -> np.ndarray:
            return np.array([5, 1, 0])[position : position + length]

        def loss_mask(self, position: int, length: int) -> None:
            return None

    formats._write_files([Cut()], tmp_path, np.dtype("<u2"), end=1)
    assert np.fromfile(tmp_path / "tokenized_0.bin", "<u2").tolist() == [5, 1, 0, 1]


def test_the_command_writes_a_format_and_no_folder_that_is_there(corpus: Path, tmp_path: Path) -> None:
    from quintet.cli import app

    file = tmp_path / "run.yaml"
    file.write_text(
        f"name: a\ndata: {{sources: [{{kind: jsonl, path: {corpus}}}], sequence_length: 8, cache_dir: {tmp_path}/c}}\n"
        "tokenizer: {kind: byte}\ntrain: {steps: 1, batch_size: 1}\n"
    )
    out = tmp_path / "out"
    arguments = ["prepare", str(file), "--format", "npy"]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert CliRunner().invoke(app, [*arguments, "--output", str(out)]).exit_code == 0
    assert np.load(out / "train.npy").dtype == np.uint16
    assert CliRunner().invoke(app, [*arguments, "--output", str(out)]).exit_code != 0


def test_each_format_has_a_source_that_reads_it() -> None:
    from quintet.cli.data import Format
    from quintet.data.formats import FORMATS

    assert {*FORMATS, "store"} == {form.value for form in Format}
    assert NpySource(kind="npy", path="x").document is None
    assert TatmSource(kind="tatm", path="x").path == "x"
