"""Parameters and floating-point operations of a model of the transformers library, from its config.json alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from quintet.config.model import HuggingFaceConfig
from quintet.model.count import Flops, ParameterCount

if TYPE_CHECKING:
    from torch import nn

    from quintet.model.pretrained import PretrainedModel


def count_pretrained(config: HuggingFaceConfig, vocab_size: int, context_length: int) -> ParameterCount:
    """The parameters of ``build_model(config, vocab_size, context_length, ...)``, exactly, adapters among them."""
    model = _outline(config, vocab_size, context_length)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(
        total=sum(size for size, _ in sizes),
        trainable=sum(size for size, trainable in sizes if trainable),
        embedding=sum(table.weight.numel() for table in _embeddings(model)),
    )


def pretrained_flops(config: HuggingFaceConfig, vocab_size: int, context_length: int, sequence_length: int) -> Flops:
    """What a token costs in training on sequences of ``sequence_length``, by the rules of ``flops_per_token``.

    A frozen matrix of n parameters costs 2n in the backward pass, for the gradient of its input alone. Of a layer's
    experts those count that a token is sent to. Attention is counted for as many heads and layers as the configuration
    names, whatever the kind of the layer.
    """
    model = _outline(config, vocab_size, context_length)
    settings = model.causal.config.get_text_config(decoder=True)
    forward = backward = 0.0
    embeddings = {id(table) for table in _embeddings(model)}
    for module in model.modules():
        if id(module) in embeddings:
            continue
        for parameter in module.parameters(recurse=False):
            share = _share_of_experts(tuple(parameter.shape), settings)
            used = share * parameter.numel()
            forward += 2 * used
            backward += (4 if parameter.requires_grad else 2) * used
    heads = getattr(settings, "num_attention_heads", None) or 0
    head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // max(heads, 1)
    attention = settings.num_hidden_layers * 4 * heads * head_dim * sequence_length
    return Flops(forward=round(forward) + attention, backward=round(backward) + 2 * attention)


def _share_of_experts(shape: tuple[int, ...], settings: object) -> float:
    """The part of a parameter that a token is multiplied with: all of a matrix, nothing of a vector, and of the
    matrices of all experts, which the library keeps in one tensor, those of the chosen ones."""
    if len(shape) == 2:
        return 1.0
    chosen = getattr(settings, "num_experts_per_tok", None)
    return chosen / shape[0] if len(shape) == 3 and chosen else 0.0


def _embeddings(model: PretrainedModel) -> list[nn.Embedding]:
    """The tables of tokens and of learned positions, which are read and not multiplied with."""
    from torch import nn

    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


@lru_cache(maxsize=1)
def _outline_of(text: str, vocab_size: int, context_length: int) -> PretrainedModel:
    from quintet.model.pretrained_loading import outline_pretrained

    return outline_pretrained(HuggingFaceConfig.model_validate_json(text), vocab_size, context_length)


def _outline(config: HuggingFaceConfig, vocab_size: int, context_length: int) -> PretrainedModel:
    # The configuration holds a dict, so that it is no key of a cache by itself.
    return _outline_of(config.model_dump_json(), vocab_size, context_length)
