"""The model of a run file, whichever kind it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quintet.config.model import HuggingFaceConfig, TransformerConfig
from quintet.model.hf.pretrained import PretrainedModel
from quintet.model.init import initialise
from quintet.model.transformer import Transformer

Model = Transformer | PretrainedModel


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
