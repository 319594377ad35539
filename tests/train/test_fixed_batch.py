"""A run on one batch comes to the entropy of its targets, and never below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import Command, measured, run_values

from quintet.config.documents import IGNORED
from quintet.config.load import load_run_config
from quintet.config.schema import RunConfig
from quintet.data.batch import conditional_entropy, context_ids
from quintet.data.prepare import prepare
from quintet.train.evaluation import lowest_loss
from quintet.train.loss import build_objective


@pytest.fixture
def write_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids among four, 0 the end of a document: samples begin alike, and their targets cannot be known."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.random.default_rng(1).integers(0, 4, 4000).astype(np.uint8))


def config_of(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    source = {"kind": "npy", "path": "a.npy", "document": "end_id"}
    values = run_values(
        name="run",
        data={"sources": [source], "validation": 0, "sequence_length": 8, "fixed_batch": True},
        tokenizer={"kind": "ids", "vocab_size": 4, "end_id": 0},
        model={"layers": 2, "width": 48, **model, "attention": {"heads": 2, **model.get("attention", {})}},
        optimizer={"lr": 6e-3},
        train={"steps": 300, "batch_size": 24, "log_every": 1},
    )
    return values | sections


def train(values: dict[str, Any], command: Command, *changes: str) -> str:
    Path("run.yaml").write_text(json.dumps(values))  # JSON is YAML
    code, out, err = command("train", "run.yaml", *changes)
    assert code == 0, err
    return out + err


def figures(said: str) -> tuple[float, float, float]:
    """The entropy at the start, and the loss and the difference at the end."""
    entropy = re.search(r"have an entropy of (-?[\d.]+) nats a token", said)
    reached = re.search(r"loss (-?[\d.]+) nats a token, (-?[\d.]+) above the entropy of its targets", said)
    assert entropy
    assert reached
    return float(entropy[1]), float(reached[1]), float(reached[2])


@pytest.mark.usefixtures("write_arrays")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"position": {"kind": "rope", "learned": True}}, marks=pytest.mark.slow),
        pytest.param(
            {"attention": {"mask": "causal_document", "restart_positions": True}, "position": {"kind": "learned"}},
            marks=pytest.mark.slow,
        ),
        {"attention": {"mask": "causal_document"}, "position": {"kind": "learned"}},
    ],
    ids=["causal", "documents", "documents that see where they are"],
)
def test_the_loss_comes_to_the_entropy_and_not_below(model: dict[str, Any], command: Command) -> None:
    entropy, loss, above = figures(train(config_of(model), command))
    assert 0.1 < entropy < np.log(4), "else it would say little"
    assert above == pytest.approx(loss - entropy, abs=2e-4)
    assert -1e-4 <= above < 0.05
    losses = measured("runs/run")
    assert len(losses) == 300
    assert min(losses) >= entropy - 1e-4


@pytest.mark.usefixtures("write_arrays")
def test_a_masked_model_has_the_same_mask_at_every_step(command: Command) -> None:
    values = config_of({"attention": {"kind": "bidirectional"}}, loss={"kind": "masked", "fraction": 0.3})
    values["train"]["steps"] = 200
    entropy, loss, _ = figures(train(values, command))
    assert entropy == pytest.approx(0.0, abs=1e-4), "what a whole sample says of its hidden tokens is all of it"
    assert loss < 0.05


@pytest.mark.usefixtures("write_arrays")
def test_a_run_that_was_stopped_goes_on_with_the_same_batch(command: Command) -> None:
    values = config_of({"layers": 1, "width": 16})
    values["train"] |= {"steps": 12}
    values["checkpoint"] = {"every": 6}
    whole = figures(train(values, command, "name=whole"))
    train(values, command, "name=parts", "train.steps=6", "schedule.kind=constant")
    again = train(values, command, "name=parts", "schedule.kind=constant")
    assert "continuing from step 6" in again
    straight = figures(train(values, command, "name=straight", "schedule.kind=constant"))
    assert figures(again) == straight
    assert figures(again)[0] == whole[0]


@pytest.mark.usefixtures("write_arrays")
def test_every_step_has_the_batch_of_the_first(command: Command) -> None:
    Path("run.yaml").write_text(json.dumps(config_of({})))
    shown = [
        json.loads(command("show-batch", "run.yaml", "--json", "--rows", "24", *rest)[1])
        for rest in (["--step", "1"], ["--step", "9"], ["--step", "9", "data.fixed_batch=false"])
    ]
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.usefixtures("write_arrays")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"attention": {"mask": "causal"}}, {}),
        ({"attention": {"mask": "causal_document"}}, {"documents": True}),
        ({"attention": {"mask": "causal_document"}, "position": {"kind": "learned"}}, {"documents": True, "places": 1}),
        (
            {"attention": {"mask": "causal_document"}, "position": {"kind": "rope", "learned": True}},
            {"documents": True, "places": True},
        ),
        (
            {"attention": {"mask": "causal_document", "restart_positions": True}, "position": {"kind": "learned"}},
            {"documents": True},
        ),
        ({"attention": {"kind": "bidirectional", "mask": "document"}}, {"documents": True, "ahead": True}),
    ],
)
def test_the_model_says_what_a_position_sees(model: dict[str, Any], options: dict[str, Any]) -> None:
    Path("run.yaml").write_text(json.dumps(config_of(model)))
    config: RunConfig = load_run_config([Path("run.yaml")]).config
    prepared = prepare(config)
    batch = build_objective(config, prepared.tokenizer).prepare(prepared.train.batch(0), "train")
    documents = np.cumsum(np.roll(batch.inputs == 0, 1, axis=1) & (np.arange(8) > 0), axis=1)
    sees = context_ids(
        batch.inputs,
        documents if options.get("documents") else None,
        ahead=options.get("ahead", False),
        positions=bool(options.get("places")),
    )
    assert lowest_loss(config, batch) == pytest.approx(conditional_entropy(batch.targets, sees))
    assert (batch.targets != IGNORED).all()
