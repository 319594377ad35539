from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers import Command

from quintet.config.documents import IGNORED
from quintet.config.loss import NextTokenLossConfig
from quintet.config.model import TransformerConfig
from quintet.data.batch import Batch
from quintet.model import build_model
from quintet.train import validation
from quintet.train.loss import Objective
from quintet.train.validation import ValidationResult, evaluation_mode, validate

BYTES = np.arange(61)
OBJECTIVE = Objective(NextTokenLossConfig(), TransformerConfig(), vocab_size=61, mask_id=61, seed=0)


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        targets = batch.targets[rows]
        parts.append(Batch(batch.inputs[rows], targets, batch.sources[rows], int((targets != IGNORED).sum())))
        start += size
    return parts


def test_the_loss_is_a_mean_over_tokens_however_the_samples_are_batched(model, ragged_batch, cpu) -> None:
    inputs, targets = torch.from_numpy(ragged_batch.inputs), torch.from_numpy(ragged_batch.targets)
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()
    for sizes in ([32], [20, 12], [1] * 32):
        result = validate(model, OBJECTIVE, cut(ragged_batch, sizes), cpu, bytes_per_token=BYTES)
        assert result.loss == pytest.approx(expected, rel=1e-6)
        assert result.tokens == ragged_batch.valid
        assert result.bytes == sum(int(target) for target in targets.flatten() if target != IGNORED)


def test_bits_per_byte_and_perplexity_follow_their_formulas() -> None:
    result = ValidationResult(loss=2.0, tokens=300, bytes=1200)
    assert result.perplexity == pytest.approx(math.exp(2.0))
    assert result.bits_per_byte == pytest.approx(2.0 * 300 / 1200 / math.log(2))
    assert ValidationResult(1000.0, 1, 1).perplexity == math.inf
    assert math.isnan(ValidationResult(0.0, 0, 0).bits_per_byte)


def test_dropout_is_off_and_train_mode_comes_back(ragged_batch, make_config, cpu) -> None:
    config = make_config(
        model={"layers": 1, "width": 32, "attention": {"heads": 2}, "embedding_dropout": 0.5, "residual_dropout": 0.5}
    )
    model = build_model(config.model, 61, 16, seed=1).train()
    first, second = (validate(model, OBJECTIVE, [ragged_batch], cpu, bytes_per_token=BYTES).loss for _ in range(2))
    assert first == second
    assert model.training
    assert all(module.training for module in model.modules())


def test_mode_comes_back_after_an_error_too(model) -> None:
    model.train()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert 1 / model.training
    assert model.training


def test_validation_leaves_gradients_and_random_numbers_alone(model, ragged_batch, cpu) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    validate(model, OBJECTIVE, [ragged_batch], cpu, bytes_per_token=BYTES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def of_two_sources(batch: Batch) -> Batch:
    """Sources in turns, so that every batch of more than one sample mixes them."""
    return Batch(batch.inputs, batch.targets, np.arange(len(batch.inputs)) % 3, batch.valid)


def test_the_labels_share_out_the_whole_however_they_are_mixed(model, ragged_batch, cpu) -> None:
    batch = of_two_sources(ragged_batch)
    whole = validate(model, OBJECTIVE, [batch], cpu, bytes_per_token=BYTES)
    assert whole.labels == {}
    for sizes in ([32], [20, 12], [1] * 32):
        result = validate(
            model, OBJECTIVE, cut(batch, sizes), cpu, bytes_per_token=BYTES, labels=("one", "other", "one")
        )
        assert list(result.labels) == ["one", "other"]
        parts = result.labels.values()
        assert sum(part.tokens for part in parts) == result.tokens == whole.tokens
        assert sum(part.bytes for part in parts) == result.bytes == whole.bytes
        assert sum(part.loss * part.tokens for part in parts) == pytest.approx(result.loss * result.tokens, rel=1e-12)
        assert result.loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("labels", [(), ("one", "other", "one")])
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_take_whole_batches_in_the_same_number_of_passes(
    monkeypatch: pytest.MonkeyPatch, model, ragged_batch, cpu, labels: tuple[str, ...], ranks: int
) -> None:
    """One process after the other, each stopped where it hands over its sums, and then all of them together."""
    batches = cut(of_two_sources(ragged_batch), [8, 8, 8, 8])
    arguments: Any = {"bytes_per_token": BYTES, "labels": labels}
    expected = validate(model, OBJECTIVE, batches, cpu, **arguments)
    sizes: list[list[int]] = []
    handed: list[Any] = []
    measure = validation.summed_loss

    def counted(model, objective, batch, compute) -> float:
        sizes[-1].append(len(batch.inputs))
        return measure(model, objective, batch, compute)

    monkeypatch.setattr(validation, "summed_loss", counted)
    monkeypatch.setattr(validation, "world_size", lambda: ranks)
    for rank in range(ranks):
        sizes.append([])
        monkeypatch.setattr(validation, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(validation, "all_gather", lambda sums: handed.append(sums) or [*handed])
        result = validate(model, OBJECTIVE, batches, cpu, **arguments)
    assert len(set(map(len, sizes))) == 1
    if not labels:
        assert {size for of_rank in sizes for size in of_rank} == {8}
    assert (result.tokens, result.bytes) == (expected.tokens, expected.bytes)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    assert {name: one.tokens for name, one in result.labels.items()} == {
        name: one.tokens for name, one in expected.labels.items()
    }


def test_the_loss_of_a_label_is_that_of_its_samples(model, ragged_batch, cpu) -> None:
    batch = of_two_sources(ragged_batch)
    labels = ("one", "other", "one")
    result = validate(model, OBJECTIVE, cut(batch, [20, 12]), cpu, bytes_per_token=BYTES, labels=labels)
    for label, found in result.labels.items():
        rows = np.array([labels[source] == label for source in batch.sources])
        inputs, targets = torch.from_numpy(batch.inputs[rows]), torch.from_numpy(batch.targets[rows])
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()
        assert found.loss == pytest.approx(loss, rel=1e-6)
        assert found.tokens == (targets != IGNORED).sum()


def test_one_label_needs_no_figures_of_its_own(model, ragged_batch, cpu) -> None:
    batch = of_two_sources(ragged_batch)
    result = validate(model, OBJECTIVE, [batch], cpu, bytes_per_token=BYTES, labels=("same",) * 3)
    assert result.labels == {}
    assert set(result.metrics()) == {"validation/loss", "validation/perplexity", "validation/bits_per_byte"}


def test_metrics_of_labels_are_named_by_them() -> None:
    part = ValidationResult(2.0, 300, 1200)
    metrics = ValidationResult(1.0, 400, 1600, {"a/b": part}).metrics()
    assert metrics["validation/loss"] == 1.0
    assert metrics["validation/a/b/loss"] == 2.0
    assert metrics["validation/a/b/perplexity"] == part.perplexity
    assert metrics["validation/a/b/bits_per_byte"] == part.bits_per_byte
    assert len(metrics) == 6


def test_what_is_held_out_without_a_loss_is_not_measured(train: Callable[..., str], command: Command) -> None:
    def rows(name: str, answer: str) -> dict[str, Any]:
        row = json.dumps({"prompt": "what did the cat say to the dog that sat under the big mat?", "answer": answer})
        Path(name).write_text(f"{row}\n" * 20)
        return {"kind": "jsonl", "path": name, "document": {"kind": "answer"}}

    data = {"sources": [rows("rows.jsonl", "that it was small")], "validation_sources": [rows("none.jsonl", "")],
            "validation": 0, "sequence_length": 32, "cache_dir": "cache"}  # fmt: skip
    name = train(model={}, data=data)
    code, out, error = command("evaluate", name)
    assert (code, out) == (2, "")
    assert "none of its held-out tokens has a loss, so nothing can be measured" in " ".join(error.split())
    code, out, error = command("evaluate", name, "--text", "held-out")
    assert (code, out, "holds no text out" in error) == (2, "", True)
