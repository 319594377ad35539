"""Training on one batch alone: how low the loss can go there, and how low it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.data.entropy import conditional_entropy, context_ids
from quintet.errors import UserError
from quintet.model.dropout import evaluation_mode
from quintet.train.validation import rows_of, summed_loss

if TYPE_CHECKING:
    from quintet.train.setup import Run


def lowest_loss(config: RunConfig, batch: Batch) -> float:
    """The loss below which no model of ``config`` can come on ``batch``, in nats a token.

    A window, or a model without positions, hides more than is reckoned with here: then it may be out of reach.
    """
    model = config.model
    if model.kind == "huggingface":
        seen = context_ids(batch.inputs, ahead=config.loss.kind == "masked")
        return conditional_entropy(batch.targets, seen)
    attention = model.attention
    prompts = batch.prompts if model.tells_prompts else None
    places = not attention.restart_positions and (model.learns_positions or model.position.kind == "sinusoidal")
    documents = batch.documents if model.tells_documents else None
    seen = context_ids(batch.inputs, documents, prompts, ahead=attention.kind == "bidirectional", places=places)
    return conditional_entropy(batch.targets, seen)


def introduction(config: RunConfig, batch: Batch) -> str:
    """What a run says of its only ``batch`` before the first step. Raises UserError when it has nothing to learn."""
    if not batch.valid:
        raise UserError("data.fixed_batch: no target of the first batch has a loss; change `seed`, or set it to false")
    return (
        f"data.fixed_batch: each step has the batch of step 1. Given what each position sees, its {batch.valid:,} "
        f"targets have an entropy of {lowest_loss(config, batch):.4f} nats a token: no loss on it can be lower"
    )


def conclusion(run: Run) -> str:
    """What a run says of its only batch after the last step."""
    batch = run.whole_batch(0)
    loss, lowest = fixed_loss(run, batch), lowest_loss(run.config, batch)
    return (
        f"data.fixed_batch: loss {loss:.4f} nats a token, {loss - lowest:.4f} above the entropy of its targets, "
        f"{lowest:.4f}"
    )


@torch.no_grad()
def fixed_loss(run: Run, batch: Batch) -> float:
    """Mean cross-entropy of the run's model on ``batch``, in nats a token, without dropout and smoothing."""
    parts = np.arange(len(batch.inputs)) // run.config.batch.micro_batch_size
    with evaluation_mode(run.model):
        losses = [
            summed_loss(run.model, run.objective, rows_of(batch, parts == part), run.compute)
            for part in range(parts[-1] + 1)
        ]
    return sum(losses) / max(batch.valid, 1)
