"""The loss of a run, as the section `loss` of the run file asks for it: which tokens are hidden and which are targets,
and the loss of a model's predictions.

``Objective`` does both and ``LossModule`` joins it with the model. The arithmetic is in
``quintet.train.cross_entropy``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintet.config.documents import IGNORED
from quintet.config.loss import LossConfig, MaskedLossConfig, NextTokenLossConfig
from quintet.config.model import ModelConfig
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.model import Model, Transformer
from quintet.model.embedding_and_head import ByteHead
from quintet.randomness import key
from quintet.tokenize import Tokenizer
from quintet.train.cross_entropy import Smoothing, cross_entropy, linear_cross_entropy
from quintet.train.sizes import model_vocabulary


@dataclass(frozen=True)
class Objective:
    """The training objective of a run: next-token prediction, or prediction of hidden tokens.

    ``vocab_size`` is the tokenizer's, and ``mask_id`` replaces a hidden token.
    """

    config: LossConfig
    model: ModelConfig
    vocab_size: int
    mask_id: int
    seed: int

    @property
    def smoothing(self) -> Smoothing:
        """The terms that training adds to the cross-entropy; validation omits them."""
        return Smoothing(self.config.label_smoothing, self.config.z_loss)

    def prepare(self, batch: Batch, purpose: str, index: int = 0, first_row: int = 0) -> Batch:
        """Return ``batch`` as the model gets it.

        Documents and prompts are dropped unless an attention mask reads them, and the ids that the config ignores
        lose their targets. Then the kind of loss chooses what is predicted. What it draws depends only on the seed,
        ``purpose``, ``index`` and the row, counted from ``first_row``.
        """
        # What no attention mask reads need not be sent to the device.
        if batch.documents is not None and not self.model.tells_documents:
            batch = replace(batch, documents=None)
        if batch.prompts is not None and not self.model.tells_prompts:
            batch = replace(batch, prompts=None)
        if self.config.ignore_token_ids or self.config.ignore_token_range:
            targets = np.where(self._ignored(batch.targets), IGNORED, batch.targets)
            batch = replace(batch, targets=targets, valid=int((targets != IGNORED).sum()))
        seeds = [key(self.seed, "mask", purpose, index, first_row + row) for row in range(len(batch.inputs))]
        return LOSSES[self.config.kind](self, self.config, batch, seeds)

    def _ignored(self, targets: np.ndarray) -> np.ndarray:
        """Return True for ``targets``, int64 [samples, length], that the config ignores: bool of that shape."""
        ignored = np.isin(targets, self.config.ignore_token_ids)
        if self.config.ignore_token_range is not None:
            first, last = self.config.ignore_token_range
            ignored |= (first <= targets) & (targets <= last)
        return ignored

    def loss(
        self,
        model: Model,
        inputs: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        prompts: Tensor | None = None,
        *,
        plain: bool = False,
    ) -> Tensor:
        """Return the summed loss in nats, an fp32 scalar; ``plain`` omits label smoothing, z-loss and reconstruction.

        All arguments are [samples, length]. ``inputs`` and ``targets`` are int64; a target is ``IGNORED`` where there
        is no loss. ``documents``, int64, numbers the document of each input for masks within documents; without it
        each sample is one document. ``prompts``, bool, is True for the inputs of a document's prompt, for the prefix
        mask; without it there are no prompts.
        """
        smoothing = Smoothing() if plain else self.smoothing
        if isinstance(model, Transformer) and isinstance(head := model.head, ByteHead):
            embedded = model.embed(inputs)
            hidden = model.hidden(inputs, documents=documents, prompts=prompts, embedded=embedded)
            total = byte_loss(head, hidden, targets, smoothing)
            if head.reconstruction and not plain:
                # As many terms as the prediction has, so that dividing by their number gives the mean of both.
                own = torch.where(targets == IGNORED, IGNORED, inputs)
                total = total + head.reconstruction * byte_loss(head, model.norm(embedded), own, Smoothing(), call=1)
            return total
        hidden = model.hidden(inputs, documents=documents, prompts=prompts)
        weight = model.head_weight
        if weight is None:
            return cross_entropy(model.logits(hidden), targets, smoothing)
        return linear_cross_entropy(
            hidden,
            weight,
            model.head_bias,
            targets,
            ids=model.vocab_size,
            smoothing=smoothing,
            chunk=self.config.chunk,
        )


def build_objective(config: RunConfig, tokenizer: Tokenizer) -> Objective:
    """Build the objective of ``config``. Raises UserError for a mask id that the model lacks."""
    mask_id = tokenizer.end_id
    if isinstance(config.loss, MaskedLossConfig):
        rows = model_vocabulary(config, tokenizer)
        mask_id = rows if config.loss.mask_id is None else config.loss.mask_id
        if config.loss.mask_id is not None and mask_id >= rows:
            raise UserError(
                f"loss.mask_id: the model has {rows} ids and none of number {mask_id}; leave it out to get one more "
                "row for the mask"
            )
    return Objective(config.loss, config.model, tokenizer.vocab_size, mask_id, config.seed)


def byte_loss(head: ByteHead, hidden: Tensor, targets: Tensor, smoothing: Smoothing, call: int = 0) -> Tensor:
    """Return the summed −log p, an fp32 scalar in nats, of int64 ``targets`` [...] after float ``hidden`` [..., width].

    The −log p of an id is the sum over the symbols of its spelling, padding included. Ids of one spelling share its
    probability equally. ``smoothing`` applies to each symbol, and ``call`` is that of `ByteBlock`.
    """
    valid = targets != IGNORED
    ids = targets.clamp(min=0)
    symbols = torch.where(valid[..., None], head.spelling(ids), IGNORED)
    return cross_entropy(head(hidden, call), symbols, smoothing) + (head.spelling.log_shares[ids] * valid).sum()


def _predict_next(objective: Objective, config: NextTokenLossConfig, batch: Batch, seeds: list[int]) -> Batch:
    return batch


def _predict_hidden(objective: Objective, config: MaskedLossConfig, batch: Batch, seeds: list[int]) -> Batch:
    """Hide tokens of ``batch``.

    ``fraction`` of the positions that have a target (at least one) are drawn without replacement. The token after each
    of them is the one to predict: in the inputs it becomes the mask or a random id, or stays. Its target is at the
    position before it, or at its own; all other positions lose theirs.
    """
    inputs, targets = batch.inputs.copy(), np.full_like(batch.targets, IGNORED)
    shift = int(config.predict_at == "own")
    for row, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        # The last target is not among the inputs, so it cannot be hidden.
        positions = np.flatnonzero(batch.targets[row, :-1] != IGNORED)
        if not positions.size:
            continue
        chosen = random.permutation(positions)[: max(1, round(config.fraction * positions.size))]
        targets[row, chosen + shift] = batch.targets[row, chosen]
        fate = random.random(chosen.size)
        masked = fate < config.masked
        drawn = ~masked & (fate < config.masked + config.random)
        inputs[row, chosen[masked] + 1] = objective.mask_id
        inputs[row, chosen[drawn] + 1] = random.integers(objective.vocab_size, size=int(drawn.sum()))
    return replace(batch, inputs=inputs, targets=targets, valid=int((targets != IGNORED).sum()))


LOSSES: dict[str, Callable[[Objective, Any, Batch, list[int]], Batch]] = {
    "next_token": _predict_next,
    "masked": _predict_hidden,
}
"""For each kind, the function that chooses inputs and targets of a batch, with a seed for each of its rows."""


class LossModule(nn.Module):
    """``model`` and ``objective`` as one module, whose forward pass returns the summed loss of samples in nats.

    DDP and FSDP communicate before and after a forward pass. The head and the loss are one operation, so both must be
    inside it.
    """

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """Return ``Objective.loss``, an fp32 scalar, of int64 and (``prompts``) bool [samples, length]."""
        return self.objective.loss(self.model, inputs, targets, documents, prompts)
