"""The objective: the targets that a model learns to predict, and the loss of its predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from quintet.config.documents import IGNORED
from quintet.config.loss import LossConfig, MaskedLossConfig
from quintet.config.model import ModelConfig
from quintet.data.batch import Batch
from quintet.model import Model, Transformer
from quintet.model.embedding_and_head import ByteHead
from quintet.randomness import key
from quintet.train.loss import Smoothing, cross_entropy, linear_cross_entropy


@dataclass(frozen=True)
class Objective:
    """The loss of a run. ``vocab_size`` is the tokenizer's; ``mask_id`` stands for a hidden token."""

    config: LossConfig
    model: ModelConfig
    vocab_size: int
    mask_id: int
    seed: int

    @property
    def smoothing(self) -> Smoothing:
        """The terms that training adds to the cross-entropy."""
        return Smoothing(self.config.label_smoothing, self.config.z_loss)

    def prepare(self, batch: Batch, purpose: str, index: int = 0, first_row: int = 0) -> Batch:
        """``batch`` as the model gets it: documents and prompts only where masks read them, no loss on ids that the
        config leaves out, and with the masked loss some inputs hidden while the others lose their target.

        A pure function of the seed, ``purpose``, ``index`` and the row, counted from ``first_row``. The config's
        fraction of the positions whose target has a loss, at least one, is drawn without replacement; the token after
        each, which is the one to predict, is replaced in the input by the mask or by a random id, or stays. Its target
        is at the position before it, or at its own.
        """
        # What no mask reads need not be sent to the device.
        if batch.documents is not None and not self.model.tells_documents:
            batch = replace(batch, documents=None)
        if batch.prompts is not None and not self.model.tells_prompts:
            batch = replace(batch, prompts=None)
        if self.config.ignore_token_ids or self.config.ignore_token_range:
            targets = np.where(self._ignored(batch.targets), IGNORED, batch.targets)
            batch = replace(batch, targets=targets, valid=int((targets != IGNORED).sum()))
        if not isinstance(self.config, MaskedLossConfig):
            return batch
        inputs, targets = batch.inputs.copy(), np.full_like(batch.targets, IGNORED)
        shift = int(self.config.predict_at == "own")
        for row in range(len(inputs)):
            random = np.random.default_rng(key(self.seed, "mask", purpose, index, first_row + row))
            # The last target is not in the input, so it cannot be hidden there.
            positions = np.flatnonzero(batch.targets[row, :-1] != IGNORED)
            if not positions.size:
                continue
            chosen = random.permutation(positions)[: max(1, round(self.config.fraction * positions.size))]
            targets[row, chosen + shift] = batch.targets[row, chosen]
            fate = random.random(chosen.size)
            masked = fate < self.config.masked
            drawn = ~masked & (fate < self.config.masked + self.config.random)
            inputs[row, chosen[masked] + 1] = self.mask_id
            inputs[row, chosen[drawn] + 1] = random.integers(self.vocab_size, size=int(drawn.sum()))
        return replace(batch, inputs=inputs, targets=targets, valid=int((targets != IGNORED).sum()))

    def _ignored(self, targets: np.ndarray) -> np.ndarray:
        """True where the config leaves ``targets``, int64 [samples, length], out of the loss; bool of that shape."""
        found = np.isin(targets, self.config.ignore_token_ids)
        if self.config.ignore_token_range is not None:
            first, last = self.config.ignore_token_range
            found |= (first <= targets) & (targets <= last)
        return found

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
        """Summed loss in nats, an fp32 scalar, of int64 ``inputs`` [samples, length] against int64 ``targets`` of the
        same shape, ``IGNORED`` where there is none; ``plain`` leaves out label smoothing and z-loss.

        ``documents``, int64 of that shape, numbers the document of each input, for masks that tell them apart; without
        it each sample is one document. ``prompts``, bool of that shape, is True for inputs that belong to their
        document's prompt, for the prefix mask; without it none does.
        """
        smoothing = Smoothing() if plain else self.smoothing
        if isinstance(model, Transformer) and isinstance(head := model.head, ByteHead):
            embedded = model.embed(inputs)
            hidden = model.hidden(inputs, documents=documents, prompts=prompts, embedded=embedded)
            total = byte_loss(head, hidden, targets, smoothing)
            if head.reconstruction and not plain:
                # As many terms as the first loss has, so that dividing by their number gives both means.
                read = torch.where(targets == IGNORED, IGNORED, inputs)
                again = byte_loss(head, model.norm(embedded), read, Smoothing(), call=1)
                total = total + head.reconstruction * again
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


def byte_loss(head: ByteHead, hidden: Tensor, targets: Tensor, smoothing: Smoothing, call: int = 0) -> Tensor:
    """Summed −log of the probability of ``targets``, int64 [...], after the floats ``hidden`` [..., width]: an fp32
    scalar in nats, which is the sum over their symbols, padding included; where several ids have one spelling, that of
    the spelling divided by their number. ``smoothing`` is of each symbol, and ``call`` as in `ByteBlock`."""
    valid = targets != IGNORED
    ids = targets.clamp(min=0)
    symbols = torch.where(valid[..., None], head.spelling(ids), IGNORED)
    return cross_entropy(head(hidden, call), symbols, smoothing) + (head.spelling.log_shares[ids] * valid).sum()


class LossModule(nn.Module):
    """``model`` and ``objective`` as one module, whose forward pass computes the summed loss of samples in nats.

    PyTorch's wrappers communicate before and after a forward pass, so it must contain the head's product and the loss,
    which are one operation.
    """

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """``Objective.loss``, an fp32 scalar; all arguments are int64 [samples, length], but ``prompts`` is bool."""
        return self.objective.loss(self.model, inputs, targets, documents, prompts)
