"""`quintet show-batch` shows the batch that the run would see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.helpers import run_values

from quintet.cli.show_batch import painted
from quintet.config.documents import IGNORED
from quintet.config.load import load_run_config
from quintet.data.batch import PADDING, Batch
from quintet.data.prepare import prepare
from quintet.tokenize.simple import ByteTokenizer


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(8):
        Path(f"texts/{number}.txt").write_text(f"document number {number}\n" * (number + 1))
    data = {"sources": [{"kind": "text", "path": "texts"}], "sequence_length": 64, "cache_dir": "cache"}
    values = run_values(name="it", train={"steps": 5, "batch_size": 3}) | {"data": data}
    Path("run.yaml").write_text(yaml.safe_dump(values))
    return "run.yaml"


def test_the_numbers_are_those_of_the_batch(run_file: str, command) -> None:
    code, out, _ = command("show-batch", run_file, "--step", "4", "--rows", "2", "--json", "data.validation=0")
    assert code == 0
    batch = prepare(load_run_config([Path(run_file)], ["data.validation=0"]).config).train.batch(3)
    found = json.loads(out)
    assert found["inputs"] == batch.inputs[:2].tolist()
    assert found["targets"] == batch.targets[:2].tolist()
    assert found["documents"] == batch.documents[:2].tolist()
    assert found["sources"] == ["text texts"] * 2


def test_the_text_is_whole_and_padding_is_counted(run_file: str, command) -> None:
    packing = "data.packing={kind: document}"
    code, out, _ = command("show-batch", run_file, packing, "--rows", "8", "train.batch_size=8", "data.validation=0")
    assert code == 0
    assert "step 1: 8 samples" in out
    for number in range(8):
        assert f"document number {number}⏎" in out
    assert "of padding" in out


def test_validation_can_be_shown(run_file: str, command) -> None:
    code, out, _ = command("show-batch", run_file, "--validation", "data.validation=200")
    assert code == 0
    assert out.startswith("validation: ")
    code, _, err = command("show-batch", run_file, "--validation", "data.validation=0")
    assert code == 2
    assert "--validation: nothing is held out" in err


def test_colours_tell_documents_and_dim_tells_what_has_no_loss() -> None:
    end = ByteTokenizer.end_id
    ids = np.array([[*b"ab", end, *b"cd", end, *b"ef"]])
    inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    targets[0, :2] = IGNORED
    documents = np.array([[0, 0, 0, 1, 1, 1, 2]])
    text = painted(Batch(inputs, targets, np.zeros(1, np.int64), 5, documents), 0, ByteTokenizer())
    assert text.plain == "ab∎\ncd∎\nef"
    spans = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert spans == [("ab∎\n", "cyan dim"), ("cd∎\n", "magenta"), ("ef", "green")]


def test_padding_has_no_text() -> None:
    inputs, targets = np.array([[*b"ab", 0, 0]]), np.array([[ord("b"), ord("c"), IGNORED, IGNORED]])
    documents = np.array([[0, 0, PADDING, PADDING]])
    text = painted(Batch(inputs, targets, np.zeros(1, np.int64), 2, documents), 0, ByteTokenizer())
    assert text.plain == "abc + 2 of padding"
