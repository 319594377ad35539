"""Damaged files of data, stores, runs and checkpoints: read as they are, or refused in one line, never a traceback.

A store is either refused or holds exactly what was written: nothing is wrong unsaid.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.damage import STEPS, Step, damage
from tests.helpers import QUICK, run_values

from quintet.cli import main
from quintet.data.store import TokenStore
from quintet.errors import UserError

pa = pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

TEXTS = [f"document {number}: " + "the quick brown fox é𝄞 jumps. " * (3 + number % 5) for number in range(30)]
BYTES = {"kind": "byte"}
IDS = {"kind": "ids", "vocab_size": 257, "end_id": 10}
DATA: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "jsonl": ({"kind": "jsonl", "path": "a.jsonl"}, BYTES, ["a.jsonl"]),
    "compressed": ({"kind": "jsonl", "path": "a.jsonl.gz"}, BYTES, ["a.jsonl.gz"]),
    "chat": (
        {"kind": "jsonl", "path": "m.jsonl", "document": {"kind": "chat", "template": "chat.jinja"}},
        {"kind": "huggingface", "path": "tok"},
        ["m.jsonl", "chat.jinja"],
    ),
    "tokens": (
        {"kind": "jsonl", "path": "t.jsonl", "document": {"kind": "tokens", "ids": "ids", "labels": "labels"}},
        IDS,
        ["t.jsonl"],
    ),
    "text": ({"kind": "text", "path": "a.txt", "separator": "\n\n"}, BYTES, ["a.txt"]),
    "csv": ({"kind": "csv", "path": "a.csv"}, BYTES, ["a.csv"]),
    "parquet": ({"kind": "parquet", "path": "a.parquet"}, BYTES, ["a.parquet"]),
    "npy": ({"kind": "npy", "path": "a.npy"}, IDS, ["a.npy", "a_labels.npy"]),
    "megatron": ({"kind": "megatron", "path": "mg"}, IDS, ["mg.idx", "mg.bin"]),
    "tokenizer": (
        {"kind": "text", "path": "a.txt"},
        {"kind": "huggingface", "path": "tok"},
        ["tok/tokenizer.json", "tok/tokenizer_config.json"],
    ),
}
"""Kinds of sources: the source, the tokenizer, and the files that are damaged."""
DATA_FILES = {name.split("/")[0] for _, _, files in DATA.values() for name in files}
RUN: list[list[str]] = [
    ["generate", "place", "--prompt", "the", "--max-tokens", "2"],
    ["evaluate", "place"],
    ["report", "place"],
    ["export", "place", "out", "--to", "huggingface"],
    ["train", *QUICK, "place"],
]
CHECKPOINT: list[list[str]] = [
    RUN[0],
    ["import", "place", "--to", "model.yaml"],
    ["evaluate", "place", "--text", "a.txt"],
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files of every kind, a run and two checkpoints, one of safetensors and one of PyTorch's old form."""
    folder = tmp_path_factory.mktemp("whole")
    _write_data(folder)
    with chdir(folder):
        _write_checkpoints(folder)
        values = run_values(name="place", data={"sources": [{"kind": "text", "path": str(folder / "a.txt")}]})
        values["data"] |= {"validation": 0.2, "sequence_length": 16, "cache_dir": "cache"}
        values["train"] |= {"steps": 2}
        Path("run.yaml").write_text(yaml.safe_dump(values))
        assert _outcome("train", *QUICK, "run.yaml") == (0, [])
    return folder


def _write_data(folder: Path) -> None:
    import pyarrow.parquet
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    rows = [{"text": text, "n": number} for number, text in enumerate(TEXTS)]
    ids = [list(text.encode()) for text in TEXTS]
    lines = {
        "a.jsonl": rows,
        "t.jsonl": [{"ids": one, "labels": one} for one in ids],
        "m.jsonl": [
            {"messages": [{"role": "user", "content": t[:9]}, {"role": "assistant", "content": t}]} for t in TEXTS
        ],
    }
    for name, some in lines.items():
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in some))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    (folder / "chat.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}")
    (folder / "a.txt").write_text("\n\n".join(TEXTS))
    (folder / "a.csv").write_text("text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=9)
    flat = np.concatenate(ids).astype(np.uint16)
    np.save(folder / "a.npy", flat)
    np.save(folder / "a_labels.npy", flat.astype(np.int32))
    flat.tofile(folder / "mg.bin")
    lengths = np.array([len(one) for one in ids])
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(ids), len(ids) + 1)
    places = np.concatenate([[0], lengths.cumsum()[:-1]]) * 2
    index = head + lengths.astype("<i4").tobytes() + places.astype("<i8").tobytes()
    (folder / "mg.idx").write_bytes(index + np.arange(len(ids) + 1, dtype="<i8").tobytes())
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    learnt.train_from_iterator(TEXTS, trainer)
    (folder / "tok").mkdir()
    learnt.save(str(folder / "tok/tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tok/tokenizer_config.json").write_text(json.dumps(settings))


def _write_checkpoints(folder: Path) -> None:
    import torch
    import transformers

    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    llama = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **sizes,
    )
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / "safe", max_shard_size="20KB")
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **sizes)
    )
    gpt2.save_pretrained(folder / "old")
    (folder / "old/model.safetensors").unlink()
    torch.save(gpt2.state_dict(), folder / "old/pytorch_model.bin", _use_new_zipfile_serialization=False)
    for name in ("safe", "old"):
        for file in (folder / "tok").iterdir():
            shutil.copy(file, folder / name)


def _outcome(*arguments: str) -> tuple[int, list[str]]:
    """The exit code of a command, and the lines of its errors. What it does not catch passes."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            main(list(arguments))
        except SystemExit as left:
            code = left.code
    return code, [line for line in said.getvalue().splitlines() if line.startswith("error: ")]


def _assert_read_or_refused(*arguments: str) -> None:
    code, errors = _outcome(*arguments)
    assert code in (0, 2)
    assert bool(errors) == (code == 2), errors
    assert not any("Traceback" in line for line in errors)


def _files(folder: Path) -> Iterator[Path]:
    left_out = {".html", ".txt", ".lock"}
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in left_out]
    return (file for file in found if "tensorboard" not in file.parts and file.name != ".running")


@pytest.mark.fuzz(round=40)
@given(st.sampled_from(list(DATA)), st.integers(0, 1), STEPS)
@example("npy", 0, [("words", 60, "no bracket")])
@example("tokens", 0, [("words", 0, "endless")])
@example("tokenizer", 0, [("words", 0, "deep")])
@example("csv", 0, [("noise", 0, b"\x1b[2J\x85\xff,n\nx,1\n")])
def test_damaged_data_is_read_or_refused_in_one_line(whole: Path, kind: str, which: int, steps: list[Step]) -> None:
    source, tokenizer, files = DATA[kind]
    with tempfile.TemporaryDirectory() as made, chdir(made):
        for name in DATA_FILES:
            (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, name)
        damage(Path(files[which % len(files)]), steps)
        values = run_values(data={"sources": [source]}, tokenizer=tokenizer)
        values["data"] |= {"validation": 0.1, "sequence_length": 16, "cache_dir": "cache"}
        Path("run.yaml").write_text(yaml.safe_dump(values))
        _assert_read_or_refused("prepare", "run.yaml")


@pytest.mark.fuzz(round=20)
@given(st.integers(0, 100), STEPS, st.sampled_from(RUN))
def test_a_damaged_run_is_read_or_refused_in_one_line(
    whole: Path, which: int, steps: list[Step], verb: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as made, chdir(made):
        shutil.copytree(whole / "runs/place", "place", symlinks=True)
        files = list(_files(Path("place")))
        damage(files[which % len(files)], steps)
        _assert_read_or_refused(*verb)


@pytest.mark.fuzz(round=20)
@given(st.sampled_from(["safe", "old"]), st.integers(0, 100), STEPS, st.sampled_from(CHECKPOINT))
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(
    whole: Path, name: str, which: int, steps: list[Step], verb: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as made, chdir(made):
        shutil.copytree(whole / name, "place")
        shutil.copy(whole / "a.txt", ".")
        files = list(_files(Path("place")))
        damage(files[which % len(files)], steps)
        _assert_read_or_refused(*verb)


@pytest.mark.fuzz(round=100)
@given(st.integers(0, 100), STEPS)
def test_a_damaged_store_is_refused_or_holds_what_was_written(whole: Path, which: int, steps: list[Step]) -> None:
    [written] = (whole / "cache/stores").iterdir()
    reference = TokenStore.open(written)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "store")
        shutil.copytree(written, folder)
        files = [file for file in _files(folder) if file.parent == folder]
        damage(files[which % len(files)], steps)
        try:
            found = TokenStore.open(folder)
        except UserError:
            return
        assert found.manifest == reference.manifest
        whole_store = (0, reference.token_count)
        np.testing.assert_array_equal(found.tokens(*whole_store), reference.tokens(*whole_store))
        documents = (0, reference.document_count)
        np.testing.assert_array_equal(found.document_ends(*documents), reference.document_ends(*documents))
        np.testing.assert_array_equal(found.hashes(*documents), reference.hashes(*documents))
