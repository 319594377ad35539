"""Data without a text: ids written as numbers, without bytes, in each command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import Command, records, run_values

from quintet.config.load import load_run_config
from quintet.config.tokenizer import IdTokenizerConfig
from quintet.data.prepare import prepare
from quintet.errors import UserError
from quintet.tokenize import TextStream, build_tokenizer, load_tokenizer
from quintet.tokenize.base import NO_END
from quintet.tokenize.simple import IdTokenizer

SIZE = 50


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a run file over 3 arrays of 400 ids each; the keys given replace sections."""
    draw = np.random.default_rng(0)
    (tmp_path / "ids").mkdir()
    for index in range(3):
        np.save(tmp_path / "ids" / f"{index}.npy", draw.integers(1, SIZE, 400).astype(np.uint16))
    monkeypatch.chdir(tmp_path)

    def write(data: dict[str, Any] | None = None, **sections: Any) -> Path:
        values = run_values(
            data={"sources": [{"kind": "npy", "path": "ids"}], "validation": 100} | (data or {}),
            tokenizer={"kind": "ids", "vocab_size": SIZE},
            train={"steps": 4},
            evaluate={"every": 2},
            sample={"prompts": ["", "1 2 3"], "max_tokens": 4},
        )
        Path("run.yaml").write_text(yaml.safe_dump(values | sections))
        return Path("run.yaml")

    return write


@given(st.lists(st.integers(0, SIZE - 1)), st.sampled_from([NO_END, SIZE - 1]))
def test_ids_are_numbers_with_spaces_and_come_back(ids: list[int], end_id: int) -> None:
    tokenizer = IdTokenizer(SIZE, end_id)
    written = " ".join(str(token) for token in ids if token != end_id)
    assert tokenizer.decode(ids) == written
    assert tokenizer.encode(written) == [token for token in ids if token != end_id]
    assert tokenizer.encode(" ".join(map(str, ids))) == ids, "an end id can be written in a prompt"
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == written
    assert not tokenizer.bytes_per_token().any()
    assert tokenizer.bytes_per_token().shape == (SIZE,)


@pytest.mark.parametrize("text", ["the", "12 cats", "50", "-1", "1_0", "+1", "1.0", "１"])
def test_a_text_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(UserError, match=r"is no id below 50; tokenizer.kind: ids knows no text, .* another tokenizer"):
        IdTokenizer(SIZE).encode(text)


@pytest.mark.parametrize("end_id", [None, 0, 49])
def test_it_is_saved_and_loaded(tmp_path: Path, end_id: int | None) -> None:
    built = build_tokenizer(IdTokenizerConfig(kind="ids", vocab_size=SIZE, end_id=end_id), list, "", tmp_path)
    built.save(tmp_path / "kept")
    loaded = load_tokenizer(tmp_path / "kept")
    assert isinstance(loaded, IdTokenizer)
    assert (loaded.vocab_size, loaded.end_id) == (SIZE, NO_END if end_id is None else end_id)
    assert loaded.fingerprint == built.fingerprint
    others = {IdTokenizer(SIZE, other).fingerprint for other in (NO_END, 0, 49)}
    assert len({*others, IdTokenizer(51).fingerprint}) == 4


def test_tokens_are_stored_as_they_are_where_documents_do_not_end(write_run: Callable[..., Path]) -> None:
    arrays = [np.load(f"ids/{index}.npy") for index in range(3)]
    (store,) = prepare(load_run_config([write_run()]).config).stores
    assert np.array_equal(store.tokens(0, store.token_count), np.concatenate(arrays))
    assert store.document_count == 3
    assert store.manifest.bytes == 0
    with_end = write_run(tokenizer={"kind": "ids", "vocab_size": SIZE, "end_id": 0})
    (ended,) = prepare(load_run_config([with_end]).config).stores
    assert np.array_equal(ended.tokens(0, ended.token_count), np.concatenate([[*one, 0] for one in arrays]))


def test_packing_takes_no_token_away_where_documents_do_not_end(write_run: Callable[..., Path]) -> None:
    packing = {"kind": "chunks", "join": False, "keep_ends": False}
    data = prepare(load_run_config([write_run({"packing": packing, "validation": 0})]).config).train
    samples = [data.source_samples[0].sample(index).ids for index in range(data.source_samples[0].count)]
    assert np.array_equal(np.concatenate(samples), np.concatenate([np.load(f"ids/{index}.npy") for index in range(3)]))


@pytest.mark.parametrize("end_id", [None, 0])
def test_every_command_works_and_says_nothing_of_bytes(
    write_run: Callable[..., Path], command: Command, end_id: int | None
) -> None:
    file = str(write_run(tokenizer={"kind": "ids", "vocab_size": SIZE, "end_id": end_id}))
    said = []

    def run(*arguments: str) -> str:
        code, out, err = command(*arguments)
        assert code == 0, err
        said.append(out + err)
        return out

    run("train", file, "name=ids")
    rows = records("runs/ids")
    validated = [row for row in rows if "validation/loss" in row]
    assert len(validated) == 2
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert not any("bits_per_byte" in name for row in rows for name in row)
    found = json.loads(run("evaluate", "ids", "--json"))
    assert found["validation/loss"] == pytest.approx(validated[-1]["validation/loss"], abs=1e-5)
    assert "validation/bits_per_byte" not in found
    run("evaluate", "ids")
    text = run("generate", "ids", "--prompt", "12 7 9", "--max-tokens", "3").strip()
    assert re.fullmatch(r"12 7 9( \d+){3}" if end_id is None else r"12 7 9( \d+){0,3}", text)
    assert text.startswith("12 7 9")
    assert all(int(word) < SIZE for word in text.split())
    beams = json.loads(run("generate", "ids", "--prompt", "12", "--max-tokens", "3", "--beams", "2", "--json"))
    assert all(int(word) < SIZE for word in beams["text"].split())
    ids = json.loads(run("show-batch", file, "--json"))["inputs"][0]
    assert " ".join(map(str, ids[:3])) in " ".join(run("show-batch", file, "--rows", "1").split())
    run("data", file)
    run("plan", file)
    run("runs", "runs", "--json")
    sample = Path("runs/ids/samples/step-000004.txt").read_text()
    assert sample.count("--- sample") == (1 if end_id is None else 2), "no document begins where none ends"
    assert "1 2 3 " in sample
    # The table of runs has a column for it, which is empty here.
    assert not any(re.search(r"\d bits per byte|\bnan\b", text) for text in said)


def test_what_needs_a_text_or_an_end_is_refused_before_anything_is_read(
    write_run: Callable[..., Path], command: Command
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": {"sources": [{"kind": "text", "path": "x"}]}}, "data.sources[0]: holds text"),
        ({"data": {"sources": [{"kind": "jsonl", "path": "x"}]}}, "data.sources[0]: holds text"),
        ({"data": {"sources": [{"kind": "npy", "path": "ids", "document": "end_id"}]}}, "tokenizer.end_id: must be"),
        ({"data": {"packing": {"kind": "chunks", "add_bos_eos": True}}}, "tokenizer.end_id: must be set: data.pack"),
        ({"tokenizer": {"kind": "ids", "vocab_size": 5, "end_id": 5}}, "end_id: 5 is not one of the 5 ids"),
    ]
    for sections, problem in cases:
        code, _, err = command("check", str(write_run(**sections)))
        assert code, problem
        assert problem in " ".join(err.split())


def test_ids_that_are_out_of_range_and_an_empty_prompt_are_refused(
    write_run: Callable[..., Path], command: Command
) -> None:
    code, _, err = command("train", str(write_run(tokenizer={"kind": "ids", "vocab_size": 40})))
    assert code
    assert "the tokenizer has 40 ids" in err
    assert command("train", str(write_run()), "name=ids")[0] == 0
    code, _, err = command("generate", "ids")
    assert code
    assert "prompt: is empty" in err
