"""Building the model of a run file, and holding its weights in fewer bytes once it is no longer trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import HuggingFaceConfig, TransformerConfig
from quintet.errors import UserError
from quintet.model.embedding_and_head import Head
from quintet.model.hf.pretrained import PretrainedModel
from quintet.model.init import initialise
from quintet.model.transformer import Transformer

Model = Transformer | PretrainedModel
Weights = Literal["wide", "narrow", "int8", "float8"]
"""How the weights of matrix products are held: in fp32, in the precision of the products, or in a byte each."""

_BYTES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}


def build_model(
    config: TransformerConfig | HuggingFaceConfig,
    vocab_size: int,
    context_length: int,
    seed: int,
    *,
    extra_rows: int = 0,
    pieces: Sequence[bytes] = (),
    weights: dict[str, Tensor] | None = None,
    meta: bool = False,
) -> Model:
    """The model of ``config`` in fp32 on the CPU, with weights that follow from ``seed`` and their own names.

    ``vocab_size`` counts the ids that can be predicted and ``context_length`` the positions, as the caller resolved
    them; the config's own values, which may be left out, are not read. ``extra_rows`` of the embedding are for ids that
    are read and never predicted. ``pieces`` are the bytes of each id, for byte-level parts. ``weights``, by name and in
    the shapes of the parameters, are taken as they are in place of random ones. None of these is for a model of the
    transformers library, which has its own rows and weights, and raises UserError as ``build_pretrained`` does. With
    ``meta`` all parameters are on the meta device, those of our own transformer for ``first_values`` to fill. PyTorch's
    global generator is not touched.
    """
    if isinstance(config, HuggingFaceConfig):
        from quintet.model.hf.loading import build_pretrained, outline_pretrained

        assert not extra_rows
        assert weights is None
        if meta:
            return outline_pretrained(config, vocab_size, context_length)
        return build_pretrained(config, vocab_size, context_length, seed)
    with torch.device("meta"):
        model = Transformer(config, vocab_size, context_length, extra_rows, pieces)
    if meta:
        return model
    if weights is None:
        initialise(model, config, seed)
    else:
        model.load_state_dict(weights, assign=True)
        model.requires_grad_(True)  # what is assigned was no parameter of this model
    return model


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
