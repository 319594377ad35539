"""Trained weights for a transformer that is to start from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model.families.architecture import ADAPTABLE, architecture, differences
from quintet.model.families.files import Tensors, find_checkpoint, read_config
from quintet.model.families.settings import family_of, model_section
from quintet.model.families.weights import to_ours
from quintet.model.transformer import Transformer


@dataclass(frozen=True)
class Start:
    """Weights by name, and a line for each thing in which the model that gets them is not what they were."""

    weights: dict[str, Tensor]
    notes: list[str]


def pretrained_weights(
    path: str, config: TransformerConfig, rows: int, context_length: int, revision: str | None = None
) -> Start:
    """The weights of the Hugging Face checkpoint ``path``, a folder or a name on the hub, for ``config`` with ``rows``
    rows of the embedding and ``context_length`` positions.

    Raises UserError when there is no such checkpoint, when it is of no family in the table, and for every key in which
    its architecture differs from ``config``, unless that can be trained into another.
    """
    folder = find_checkpoint(path, revision)
    values = read_config(folder)
    theirs = TransformerConfig.model_validate(model_section(values, path))
    assert theirs.vocab_size is not None
    assert theirs.context_length is not None
    tensors = Tensors(folder)
    if theirs.layers > len(tensors):
        raise UserError(
            f"{path}: config.json says {theirs.layers} layers, for which {len(tensors)} tensors are too few"
        )
    with torch.device("meta"):
        empty = Transformer(theirs, theirs.vocab_size, theirs.context_length).state_dict()
    weights = to_ours(family_of(values["model_type"], path), theirs, empty, tensors, path)
    start = fitted(weights, theirs, config, theirs.vocab_size, rows, context_length, path)
    return Start(start.weights, [*tensors.files.notes(path), *start.notes])


def fitted(
    weights: Mapping[str, Tensor],
    theirs: TransformerConfig,
    ours: TransformerConfig,
    vocab_size: int,
    rows: int,
    context_length: int,
    where: str,
) -> Start:
    """``weights`` of the transformer ``theirs`` with ``vocab_size`` ids, for ``ours``.

    Rows of the embedding and of the head that ``theirs`` lacks start as the mean of its rows (Hewitt 2021). Raises
    UserError as ``pretrained_weights``.
    """
    changed = differences(architecture(ours), architecture(theirs))
    fatal = {name: values for name, values in changed.items() if not name.startswith(ADAPTABLE)}
    if fatal:
        raise UserError(
            *(f"model.{name}: {mine}, but {where} has {its}" for name, (mine, its) in fatal.items()),
            f"model.init.path: {where} has another architecture; `quintet import` writes the model section for it",
        )
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == "position.weight":
            if len(value) < context_length:
                raise UserError(
                    f"model.context_length: {context_length} positions, but {where} has learned {len(value)}; lower it"
                )
            value = value[:context_length]
        elif name in ("embedding.weight", "head.weight", "head.bias"):
            if rows < vocab_size:
                raise UserError(f"model.vocab_size: {rows} rows, but {where} has {vocab_size}; set it to {vocab_size}")
            value = value[:vocab_size]
            mean = value.mean(dim=0, keepdim=True).expand(rows - vocab_size, *value.shape[1:])
            value = torch.cat([value, mean])
        found[name] = value
    adapted = [f"model.{name}: {mine}; {where} was trained with {its}" for name, (mine, its) in changed.items()]
    return Start(found, adapted)
