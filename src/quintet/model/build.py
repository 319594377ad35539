"""Building the model of a run file, and holding its weights in fewer bytes once it is no longer trained."""

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
"""How the weights of matrix products are stored: in fp32, in the precision of the products, or in one byte each."""

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
    """Build the model of ``config`` in fp32 on the CPU, with weights that depend only on ``seed`` and their names.

    ``vocab_size`` is the number of ids that can be predicted and ``context_length`` that of positions; the values in
    ``config``, which are optional, are not read. ``extra_rows`` of the embedding are for ids that are read and never
    predicted. ``pieces`` are the bytes of each id, for byte-level parts. ``weights``, by name and in the shapes of the
    parameters, replace random ones. These three are for our own transformer only. With ``meta`` all parameters are on
    the meta device, and ``first_values`` gives those of our own transformer. PyTorch's global generator is not touched.
    Raises UserError as ``build_pretrained`` does for a model of the transformers library.
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
        model.requires_grad_(True)  # assigned tensors are plain ones
    return model


def narrow_weights(model: Model, weights: Weights, dtype: torch.dtype) -> None:
    """Store the weights of the matrix products of ``model``, which computes in ``dtype``, as ``weights`` says.

    Narrow weights change no bit of a result under autocast to ``dtype`` and save the memory of the wide ones beside
    autocast's copies; without autocast the model no longer works. With one byte each, the weights of the blocks are
    rounded, as `ScaledLinear` describes. Embedding, norms and a tied head stay wide. A model of the transformers
    library is not changed, because its own code may need wide weights. Raises UserError for such a model with one byte
    per weight.
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
    """A linear layer whose weights take one byte each, with a scale per output.

    The largest weight of an output becomes the largest number of ``dtype``; int8 then rounds a weight by at most half a
    step, 1/254 of the largest weight, and float8 (e4m3) by at most 1/16 of the weight.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        wide = layer.weight.detach().float()
        largest = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
        scale = wide.abs().amax(dim=1) / largest
        scaled = wide / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        self.register_buffer("weight", (scaled.round() if dtype == torch.int8 else scaled).to(dtype))
        self.register_buffer("scale", scale)
        self.register_parameter("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Floats [..., inputs] to [..., outputs]."""
        product = F.linear(x, self.weight.to(x.dtype))
        scaled = product * self.scale.to(product.dtype)
        return scaled if self.bias is None else scaled + self.bias.to(product.dtype)
