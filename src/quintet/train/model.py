"""The model of a run, with the sizes that follow from run file and tokenizer, and activation checkpointing."""

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

from quintet.config.model import HuggingFaceConfig, NormalInitConfig, PretrainedInitConfig, TransformerConfig
from quintet.config.schema import RunConfig
from quintet.config.train import ActivationCheckpointing
from quintet.model import Model, build_model
from quintet.model.embedding_and_head import cut_ids
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds, text_bounds
from quintet.train.sizes import context_length, extra_rows, model_vocabulary


def build_run_model(
    config: RunConfig, tokenizer: Tokenizer, weights: dict[str, Tensor] | None = None, *, meta: bool = False
) -> Model:
    """Build the model of a run: ``build_model`` with the sizes, rows and bytes that follow from ``config`` and
    ``tokenizer``.

    ``weights``, by name, have the shapes of the parameters, in fp32. Without them a model that starts from trained
    weights gets random ones, for a checkpoint to replace. With ``meta`` the parameters are on the meta device, and
    ``weights_of`` fills those of our own transformer. Raises UserError as ``build_model`` and ``model_vocabulary`` do.
    """
    if isinstance(config.model, HuggingFaceConfig):
        return build_model(config.model, tokenizer.vocab_size, context_length(config), config.seed, meta=meta)
    return build_model(
        drawn(config.model, weights),
        model_vocabulary(config, tokenizer),
        context_length(config),
        config.seed,
        extra_rows=extra_rows(config),
        pieces=tokenizer.pieces.table if config.model.byte_parts else (),
        weights=weights,
        meta=meta,
    )


def drawn(model: TransformerConfig, weights: dict[str, Tensor] | None) -> TransformerConfig:
    """Return ``model``, with random initialisation for trained weights if ``weights`` [...], of any dtype, are None."""
    if weights is None and isinstance(model.init, PretrainedInitConfig):
        return model.model_copy(update={"init": NormalInitConfig()})
    return model


def run_bounds(config: RunConfig, tokenizer: Tokenizer) -> TextBounds:
    """Return the ids before and after the texts that the model of ``config`` is trained on."""
    return text_bounds(tokenizer, around_samples=getattr(config.data.packing, "add_bos_eos", False))


def spelling_notes(config: RunConfig, tokenizer: Tokenizer) -> list[str]:
    """Return a line for each byte-level part of the model that cuts the bytes of some ids."""
    if isinstance(config.model, HuggingFaceConfig):
        return []
    lengths = {part.bytes for part in config.model.byte_parts}
    lines = [cut_ids(tokenizer.pieces.table, length) for length in sorted(lengths)]
    return [f"model: {line}" for line in lines if line is not None]


aten = torch.ops.aten
# What is expensive to compute again: matrix products and attention.
_SAVED = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def checkpoint_activations(blocks: Iterable[nn.Module], how: ActivationCheckpointing) -> None:
    """Make ``blocks`` save fewer activations; gradients stay the same bit for bit.

    With a number n each n-th block saves only its input. With "selective" each block saves its matrix products and
    attention. The forward method is replaced, not the block wrapped, so that parameters keep their names.
    """
    if how == "none":
        return
    for index, block in enumerate(blocks):
        if how == "selective" or index % how == 0:
            block.forward = _Checkpointed(block.forward, selective=how == "selective")


class _Checkpointed:
    def __init__(self, forward: Any, *, selective: bool) -> None:
        self._forward = forward
        library = import_module("torch.utils.checkpoint")  # PyTorch leaves its types open
        contexts = {"context_fn": partial(library.create_selective_checkpoint_contexts, _policy)} if selective else {}
        self._checkpoint: Any = partial(library.checkpoint, forward, use_reentrant=False, **contexts)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*arguments, **named)
        return self._checkpoint(*arguments, **named)


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _SAVED else CheckpointPolicy.PREFER_RECOMPUTE
