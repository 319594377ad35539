"""Model and loss as one module, which is what PyTorch's wrappers want to see the forward pass of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from quintet.model import Model
    from quintet.train.objective import Objective


class LossModule(nn.Module):
    """``model`` and what it learns: a forward pass goes from samples to their summed loss in nats, a scalar.

    So the head's product and the loss, which are one operation, are inside the pass that wrappers surround with their
    communication.
    """

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None, prompts: Tensor | None = None
    ) -> Tensor:
        """See ``Objective.loss``; all are [samples, length]."""
        return self.objective.loss(self.model, inputs, targets, documents, prompts)
