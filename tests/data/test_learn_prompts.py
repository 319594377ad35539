"""`data.learn_prompts`: a loss also on what the sources give none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.helpers import run_config, write_jsonl

from quintet.config.documents import IGNORED
from quintet.data.prepare import Prepared, prepare


def prepared(folder: Path, learn_prompts: bool, packing: dict[str, Any]) -> Prepared:
    rows = [{"prompt": f"{'very ' * (row % 5)}long {row}", "answer": f"A{row}"} for row in range(20)]
    write_jsonl(folder / "rows.jsonl", rows)
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "document": {"kind": "answer"}}
    data = {"sources": [source], "sequence_length": 12, "packing": packing, "validation": 0}
    return prepare(run_config(folder, data=data | {"learn_prompts": learn_prompts}))


def test_a_stream_has_the_same_tokens_and_a_loss_on_each(tmp_path: Path) -> None:
    some, all_of_it = (prepared(tmp_path, value, {"kind": "stream"}) for value in (False, True))
    assert some.fingerprint != all_of_it.fingerprint
    one, other = some.train.batch(0), all_of_it.train.batch(0)
    assert np.array_equal(one.inputs, other.inputs)
    assert 0 < one.valid < other.valid == other.targets.size
    where = one.targets != IGNORED
    assert np.array_equal(one.targets[where], other.targets[where])


def test_samples_without_an_answer_are_left_out_only_where_prompts_have_no_loss(tmp_path: Path) -> None:
    """The longest prompts fill a sample of 12 tokens; the tables of both are kept beside one another."""
    counts = [prepared(tmp_path, value, {"kind": "document"}).train.epoch_samples for value in (False, True, False)]
    assert counts[1] == 20
    assert counts[0] == counts[2] < 20


def test_padding_has_no_loss(tmp_path: Path) -> None:
    batch = prepared(tmp_path, True, {"kind": "document"}).train.batch(0)
    assert batch.documents is not None
    assert np.array_equal(batch.targets == IGNORED, batch.documents < 0)
