"""What is hidden, what is predicted, and that documents and prompts reach the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quintet.config.documents import IGNORED
from quintet.config.loss import MaskedLossConfig, NextTokenLossConfig
from quintet.config.model import TransformerConfig
from quintet.data.batch import Batch
from quintet.model import build_model
from quintet.train.loss import Objective

VOCAB, LENGTH = 61, 40


def objective_of(loss=None, **model) -> Objective:
    config = TransformerConfig.model_validate({"layers": 1, "width": 32, **model})
    return Objective(loss or NextTokenLossConfig(), config, VOCAB, mask_id=VOCAB, seed=5)


def batch_of(rows: int = 64) -> Batch:
    ids = np.random.default_rng(0).integers(0, VOCAB, (rows, LENGTH + 1))
    targets = ids[:, 1:].copy()
    targets[0, 10:] = IGNORED
    targets[1] = IGNORED
    return Batch(ids[:, :-1].copy(), targets, np.zeros(rows, np.int64), int((targets != IGNORED).sum()))


def test_hidden_tokens_are_those_behind_the_positions_with_a_loss() -> None:
    batch = batch_of()
    hidden = objective_of(MaskedLossConfig(kind="masked", fraction=0.3)).prepare(batch, "train", 7)
    lossy = hidden.targets != IGNORED
    assert np.array_equal(hidden.targets[lossy], batch.targets[lossy])
    changed = hidden.inputs != batch.inputs
    assert not changed[:, 0].any()
    assert not (changed[:, 1:] & ~lossy[:, :-1]).any()
    assert not lossy[:, -1].any()  # the token behind the last position is not in the input
    assert hidden.valid == lossy.sum()
    assert lossy[1].sum() == 0
    assert lossy[0].sum() == 3
    assert (lossy[2:].sum(1) == round(0.3 * (LENGTH - 1))).all()


def test_of_the_hidden_tokens_the_shares_that_are_asked_for_become_mask_and_random() -> None:
    batch = batch_of(2000)
    hidden = objective_of(MaskedLossConfig(kind="masked", masked=0.6, random=0.3)).prepare(batch, "train", 0)
    lossy = hidden.targets[:, :-1] != IGNORED
    inputs, before = hidden.inputs[:, 1:][lossy], batch.inputs[:, 1:][lossy]
    assert (inputs == VOCAB).mean() == pytest.approx(0.6, abs=0.02)
    # A random id is the old one once in as many ids as there are.
    assert ((inputs != VOCAB) & (inputs != before)).mean() == pytest.approx(0.3 * (1 - 1 / VOCAB), abs=0.02)
    assert inputs.max() == VOCAB
    assert inputs[inputs != VOCAB].max() < VOCAB


def test_a_hidden_token_is_predicted_at_its_own_position_where_that_is_asked_for() -> None:
    """BERT's loss: the target of a position is the token that stood there. What is hidden stays the same."""
    batch = batch_of()
    before, own = (
        objective_of(MaskedLossConfig(kind="masked", fraction=0.3, predict_at=at)).prepare(batch, "train", 7)
        for at in ("before", "own")
    )
    assert np.array_equal(own.inputs, before.inputs)
    lossy = own.targets != IGNORED
    assert np.array_equal(own.targets[lossy], batch.inputs[lossy])
    assert not ((own.inputs != batch.inputs) & ~lossy).any()
    assert np.array_equal(lossy[:, 1:], (before.targets != IGNORED)[:, :-1])
    assert own.valid == before.valid == lossy.sum()
    assert not lossy[:, 0].any()  # no target says what the first position holds


def test_what_is_hidden_follows_from_seed_step_and_row_alone() -> None:
    objective, batch = objective_of(MaskedLossConfig(kind="masked")), batch_of()
    whole = objective.prepare(batch, "train", 3)
    assert np.array_equal(whole.inputs, objective.prepare(batch, "train", 3).inputs)
    assert not np.array_equal(whole.inputs, objective.prepare(batch, "train", 4).inputs)
    part = Batch(batch.inputs[40:], batch.targets[40:], batch.sources[40:], batch.valid)
    assert np.array_equal(objective.prepare(part, "train", 3, first_row=40).inputs, whole.inputs[40:])


def test_next_tokens_are_predicted_from_the_batch_as_it_is() -> None:
    batch = batch_of()
    assert objective_of().prepare(batch, "train", 0) is batch


def test_the_mask_has_a_row_of_its_own_that_is_never_predicted() -> None:
    model = build_model(TransformerConfig(layers=1, width=32), VOCAB, LENGTH, seed=0, extra_rows=1)
    assert model.state_dict()["embedding.weight"].shape == (VOCAB + 1, 32)
    batch = objective_of(MaskedLossConfig(kind="masked")).prepare(batch_of(), "train", 0)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    loss = objective_of(MaskedLossConfig(kind="masked")).loss(model, inputs, targets)
    logits = model(inputs)
    assert logits.shape[-1] == VOCAB
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_without_numbers_a_sample_is_one_document_whatever_its_ids() -> None:
    objective = objective_of(attention={"mask": "causal_document"})
    model = build_model(objective.model, VOCAB, LENGTH, seed=0)
    inputs, targets = (torch.from_numpy(part) for part in (batch_of().inputs, batch_of().targets))
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    assert objective.loss(model, inputs, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert objective.loss(model, inputs, targets, torch.zeros_like(inputs)).item() == pytest.approx(expected.item())


def test_numbers_of_documents_are_dropped_where_no_mask_reads_them() -> None:
    batch = replace(batch_of(), documents=np.zeros((64, LENGTH), np.int64))
    assert objective_of().prepare(batch, "train").documents is None
    assert objective_of(attention={"mask": "causal_document"}).prepare(batch, "train").documents is batch.documents


def test_prompts_reach_the_mask_and_are_dropped_where_none_reads_them() -> None:
    objective = objective_of(attention={"mask": "prefix"}, init={"std": 0.5})
    model = build_model(objective.model, VOCAB, LENGTH, seed=0)
    prompts = np.arange(LENGTH)[None].repeat(64, axis=0) < 12
    batch = replace(batch_of(), prompts=prompts)
    assert objective_of().prepare(batch, "train").prompts is None
    assert objective.prepare(batch, "train").prompts is prompts
    inputs, targets, seen = (torch.from_numpy(array) for array in (batch.inputs, batch.targets, prompts))
    logits = model(inputs, prompts=seen)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    assert objective.loss(model, inputs, targets, None, seen).item() == pytest.approx(expected.item(), rel=1e-6)
    assert objective.loss(model, inputs, targets).item() != pytest.approx(expected.item(), rel=1e-4)


def test_ids_that_are_left_out_have_no_loss() -> None:
    """The worked example of PhyAGI's collator."""
    config = NextTokenLossConfig(ignore_token_ids=(15, 20), ignore_token_range=(1, 10))
    targets = np.array([[1, 2, 3, 10, 16, 20, 21, 0, IGNORED]])
    batch = Batch(targets.copy(), targets, np.zeros(1, np.int64), 8)
    found = objective_of(config).prepare(batch, "train")
    assert found.targets.tolist() == [[IGNORED] * 4 + [16, IGNORED, 21, 0, IGNORED]]
    assert found.valid == 3
    assert np.array_equal(found.inputs, batch.inputs)


def test_documents_of_the_batch_reach_the_mask() -> None:
    objective = objective_of(attention={"mask": "causal_document"}, init={"std": 0.5})
    model = build_model(objective.model, VOCAB, LENGTH, seed=0)
    batch = batch_of(4)
    numbers = np.repeat([[0, 1]], LENGTH // 2, axis=1).repeat(4, axis=0)
    given = Batch(batch.inputs, batch.targets, batch.sources, batch.valid, numbers)
    assert objective.prepare(given, "train").documents is numbers
    arrays = [torch.from_numpy(array) for array in (batch.inputs, batch.targets, numbers)]
    apart = objective.loss(model, *arrays)
    halves = [
        objective.loss(model, *(array[:, part].contiguous() for array in arrays))
        for part in (slice(0, LENGTH // 2), slice(LENGTH // 2, LENGTH))
    ]
    assert apart.item() != pytest.approx(objective.loss(model, *arrays[:2]).item(), rel=1e-4)
    assert isinstance(model.config, TransformerConfig)
    assert model.config.position.kind == "rope"  # which sees distances alone, so that the second half is itself
    torch.testing.assert_close(apart, sum(halves), rtol=1e-4, atol=1e-4)
