"""Weights of a model that is no longer trained, held in fewer bytes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.errors import UserError
from quintet.model.build import Model
from quintet.model.embedding_and_head import Head
from quintet.model.transformer import Transformer

Weights = Literal["wide", "narrow", "int8", "float8"]
"""How the weights of matrix products are held: in fp32, in the precision of the products, or in a byte each."""

_BYTES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}


def narrow_weights(model: Model, weights: Weights, dtype: torch.dtype) -> None:
    """Hold the weights of the matrix products of ``model``, computed in ``dtype``, as ``weights`` says.

    Narrow ones change no bit of a result under autocast to ``dtype``, and spare the wide weights beside the copy that
    autocast makes; without autocast the model then computes nothing. A byte a weight rounds those of the blocks, as
    `ScaledLinear` says. Embedding and norms stay wide, and so does a head that is the embedding. A model of the
    transformers library stays as it is, for its own code may ask for wide weights. Raises UserError for a byte a weight
    with it.
    """
    if weights == "wide":
        return
    if not isinstance(model, Transformer):
        if weights in _BYTES:
            raise UserError(
                f"--weights: {weights} is for Quintet's own transformer, and this is a model of the transformers "
                "library; leave it out"
            )
        return
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | Head):
            module.to(dtype)
        for name, child in module.named_children():
            if weights in _BYTES and isinstance(child, nn.Linear):
                setattr(module, name, ScaledLinear(child, _BYTES[weights]))


class ScaledLinear(nn.Module):
    """A linear layer whose weights take a byte each, with a scale for each output.

    The largest weight of an output becomes the largest number of ``dtype``; int8 then rounds a weight by half a step at
    most, which is 1/254 of that largest one, and float8 (e4m3) by 1/16 of itself.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        wide = layer.weight.detach().float()
        most = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
        scale = wide.abs().amax(dim=1) / most
        scaled = wide / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        self.register_buffer("weight", (scaled.round() if dtype == torch.int8 else scaled).to(dtype))
        self.register_buffer("scale", scale)
        self.register_parameter("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Floats [..., inputs] to [..., outputs]."""
        found = F.linear(x, self.weight.to(x.dtype))
        scaled = found * self.scale.to(found.dtype)
        return scaled if self.bias is None else scaled + self.bias.to(found.dtype)
