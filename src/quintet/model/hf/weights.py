"""Conversion of weights between our names and those of a family, by the family's table of names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quintet.config.model import TransformerConfig
from quintet.config.sharing import SharedPart
from quintet.errors import UserError
from quintet.libraries import require
from quintet.model.hf.files import Tensors, building, check_finite, check_floats, find_checkpoint, read_config
from quintet.model.hf.settings import (
    ADAPTABLE,
    architecture,
    differences,
    family_of,
    huggingface_settings,
    model_section,
    obstacles,
)
from quintet.model.hf.table import FAMILIES, Family
from quintet.model.transformer import Transformer

# Old checkpoints store these beside the weights: constants that are derived from the configuration.
_CONSTANTS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_PARTS: dict[SharedPart, tuple[str, str]] = {
    "attention_qkv": ("attention.qkv", "attention.qkv_difference"),
    "attention_output": ("attention.output", "attention.output_difference"),
    "feedforward": ("feedforward.", "feedforward_differences."),
}
"""The names inside a block of each part, and of the block's low-rank differences from the shared part; after a final
dot comes the name of a matrix."""


def to_ours(
    family: Family, config: TransformerConfig, empty: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Return the fp32 weights of the transformer ``config``, from the ``tensors`` of a checkpoint in any float dtype.

    They have the names and shapes of ``empty``. Raises UserError, which starts with ``where``, for a tensor that is
    missing, is not finite, has another shape or has no place in the transformer.
    """
    based = any(name.startswith(family.base) for name in tensors)
    rows = _rows(config)
    used: set[str] = set()
    embedding, head = (f"{family.names[ours]}.weight".removeprefix(family.base) for ours in ("embedding", "head"))
    weights: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        """Return the fp32 tensor of that name, in its stored shape."""
        name = name if based else name.removeprefix(family.base)
        if name not in tensors and config.tie_embeddings and head in tensors and name.endswith(embedding):
            name = head  # the tied matrix, stored under its other name
        if name not in tensors:
            raise UserError(f"{where}: lacks the tensor {name}; the checkpoint is not whole")
        used.add(name)
        check_floats([name], tensors, where)
        value = tensors[name].float()
        check_finite(name, value, where)
        return value

    for ours, theirs, leaf in _pairs(family, config):
        name = f"{ours}.{leaf}"
        if name not in empty:
            continue
        parts = [take(f"{their}.{leaf}") for their in theirs]
        if len(parts) > 1 and [len(part) for part in parts] != rows:
            found_rows = ", ".join(str(len(part)) for part in parts)
            raise UserError(f"{where}: {theirs[0]}.{leaf} and its two siblings have {found_rows} rows, not {rows}")
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = _transposed(whole, family, ours)
        if whole.shape != empty[name].shape:
            raise UserError(
                f"{where}: {theirs[0]}.{leaf} has the shape {list(whole.shape)}, not {list(empty[name].shape)}"
            )
        weights[name] = whole + family.norm_offset if _is_norm(ours, leaf) else whole
    left = [name for name in tensors if name not in used and not name.endswith(_CONSTANTS)]
    if config.tie_embeddings:  # some checkpoints write the shared matrix twice
        left = [name for name in left if name != head]
    if left:
        raise UserError(f"{where}: holds {', '.join(sorted(left)[:3])}, for which {family.model_type} has no place")
    return weights


def to_theirs(
    family: Family, config: TransformerConfig, state: Mapping[str, Tensor], vocab_size: int
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of ``family`` from the weights ``state`` of the transformer ``config``.

    They have the dtypes of ``state`` and the shapes of the family, which may separate queries, keys and values and
    transpose matrices; rows beyond ``vocab_size`` are omitted. Each block has its own copy of shared modules, with its
    low-rank difference added.
    """
    state = portable_weights(config, state)
    tensors: dict[str, Tensor] = {}
    for ours, theirs, leaf in _pairs(family, config):
        name = f"{ours}.{leaf}"
        if name not in state:
            continue
        value = state[name] - family.norm_offset if _is_norm(ours, leaf) else state[name]
        if ours in ("embedding", "head"):
            value = value[:vocab_size]
        value = _transposed(value, family, ours)
        parts = torch.split(value, _rows(config)) if len(theirs) > 1 else (value,)
        tensors |= {f"{their}.{leaf}": part.contiguous() for their, part in zip(theirs, parts, strict=True)}
    return tensors


def portable_weights(config: TransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of ``portable(config)`` from those of ``config``, in their dtypes and in the shapes of a model
    whose blocks share nothing.

    The two models compute the same function.
    """
    return {name: _halves(config, name, value) for name, value in _unshared(config, state).items()}


def _unshared(config: TransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of ``state``, in its dtypes, with an own copy of shared modules in each block: the sum of the
    shared matrix and the block's difference, and zeros for a bias that only the differences of other blocks have."""
    weights = {name: value for name, value in state.items() if not name.startswith("shared.")}
    for part, (own, differing) in _PARTS.items():
        shared = {name: value for name, value in state.items() if name.startswith(f"shared.{part}.")}
        biased = config.difference_bias(part)
        for name, value in shared.items():
            # Of "shared.feedforward.up.weight" or "shared.attention_qkv.bias": the matrix, and weight or bias.
            matrix, _, leaf = name.removeprefix(f"shared.{part}.").rpartition(".")
            for block in range(config.layers):
                ours, theirs = f"blocks.{block}.{own}{matrix}", f"blocks.{block}.{differing}{matrix}"
                if f"{theirs}.down" in weights:
                    assert leaf == "weight", "a shared matrix with differences has no bias of its own"
                    weights |= _summed(config, ours, theirs, value, weights)
                elif f"{ours}.{leaf}" not in weights:
                    weights[f"{ours}.{leaf}"] = value
                if biased and f"{ours}.bias" not in weights:
                    weights[f"{ours}.bias"] = value.new_zeros(len(value))
    return {name: value for name, value in weights.items() if "_difference" not in name}


def _summed(
    config: TransformerConfig, ours: str, theirs: str, shared: Tensor, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weight [outputs, inputs] and bias of the matrix ``ours``: the sum of the ``shared`` matrix and the
    difference ``theirs`` in ``weights``, in its dtype."""
    assert config.sharing is not None
    scale = config.sharing.scale
    up, down = weights[f"{theirs}.up"], weights[f"{theirs}.down"]
    summed = {f"{ours}.weight": shared + scale * (up @ down)}
    if f"{theirs}.up_bias" in weights:
        bias = weights[f"{theirs}.up_bias"]
        inner = weights.get(f"{theirs}.down_bias")
        summed[f"{ours}.bias"] = bias if inner is None else bias + scale * (up @ inner)
    return summed


def _pairs(family: Family, config: TransformerConfig) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield our name of a module, the family's name or names of it, and the name of a parameter that it may have."""
    for ours, theirs in family.names.items():
        names = (theirs,) if isinstance(theirs, str) else theirs
        for block in range(config.layers) if "*" in ours else (0,):
            for leaf in ("weight", "bias"):
                yield (
                    ours.replace("*", str(block)),
                    tuple(name.replace("*", str(block)) for name in names),
                    leaf,
                )


def _rows(config: TransformerConfig) -> list[int]:
    """Return the numbers of rows of the projections to queries, keys and values."""
    return [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]


def _is_norm(ours: str, leaf: str) -> bool:
    return leaf == "weight" and ours.endswith("norm")


def _transposed(value: Tensor, family: Family, ours: str) -> Tensor:
    """Return ``value`` of any dtype, with a block's matrix transposed if the family stores [inputs, outputs]."""
    return value.t().contiguous() if family.transposed and value.dim() == 2 and ours.startswith("blocks.") else value


def _halves(config: TransformerConfig, name: str, value: Tensor) -> Tensor:
    """Return ``value`` [rows, ...] of any dtype with the two features of each rotated pair half a head apart.

    This changes no result, because queries and keys only meet in sums over the features of a head.
    """
    if getattr(config.position, "pairs", "halves") == "halves":
        return value
    turned = torch.arange(config.rotary_dim).view(-1, 2).t().flatten()
    order = torch.cat([turned, torch.arange(config.rotary_dim, config.head_dim)])
    if ".attention.query_norm." in name or ".attention.key_norm." in name:
        return torch.unflatten(value, 0, (-1, config.head_dim))[:, order].flatten(0, 1)
    if ".attention.qkv." not in name:
        return value
    parts = torch.split(value, _rows(config))
    queries, keys, values = (torch.unflatten(part, 0, (-1, config.head_dim)) for part in parts)
    return torch.cat([part.flatten(0, 1) for part in (queries[:, order], keys[:, order], values)])


@dataclass(frozen=True)
class Start:
    """Weights by name, and a note for each key in which the architecture of their model differed."""

    weights: dict[str, Tensor]
    notes: list[str]


def pretrained_weights(
    path: str, config: TransformerConfig, rows: int, context_length: int, revision: str | None = None
) -> Start:
    """Return the fp32 weights of the Hugging Face checkpoint ``path``, a folder or a name on the hub, for ``config``
    with ``rows`` rows of the embedding and ``context_length`` positions.

    Raises UserError if there is no such checkpoint or it is of no family in the table, and for each key in which its
    architecture differs from ``config``, unless that key may change (``ADAPTABLE``).
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
    with building(path), torch.device("meta"):
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
    """Fit ``weights`` of the transformer ``theirs`` with ``vocab_size`` ids to ``ours``, in their dtypes.

    Embedding and head become [rows, ...], learned positions [context_length, width]; other shapes stay. New rows start
    as the mean of the old ones (Hewitt 2021). Raises UserError as ``pretrained_weights`` does.
    """
    changed = differences(architecture(ours), architecture(theirs))
    fatal = {name: values for name, values in changed.items() if not name.startswith(ADAPTABLE)}
    if fatal:
        raise UserError(
            *(f"model.{name}: {mine}, but {where} has {its}" for name, (mine, its) in fatal.items()),
            f"model.init.path: {where} has another architecture; `quintet import` writes the model section for it",
        )
    resized: dict[str, Tensor] = {}
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
        resized[name] = value
    adapted = [f"model.{name}: {mine}; {where} was trained with {its}" for name, (mine, its) in changed.items()]
    return Start(resized, adapted)


@dataclass(frozen=True)
class Exported:
    """A ``transformers.PretrainedConfig`` and the weights of its model by name, tied ones once."""

    config: Any
    tensors: dict[str, Tensor]


def export_weights(model: Transformer, special_ids: dict[str, int | None]) -> Exported | list[str]:
    """Return ``model`` as the first family that computes the same function, or the obstacles of the nearest family.

    ``special_ids`` go into the configuration (`bos_token_id`, …). Raises UserError without `transformers`.
    """
    library = require("transformers", "hf", "export")
    nearest: list[str] | None = None
    for family in FAMILIES:
        settings = huggingface_settings(family, model.config, model.vocab_size, model.context_length)
        try:
            config = library.AutoConfig.for_model(family.model_type, **settings, **special_ids)
        except ValueError as error:  # checks of transformers, such as that heads divide the width
            missing = [f"{family.model_type}: {str(error).strip().splitlines()[-1]}"]
        else:
            missing = obstacles(family, model.config, config.to_dict())
            if not missing:
                config.architectures = [family.architecture]
                tensors = to_theirs(family, model.config, model.state_dict(), model.vocab_size)
                return Exported(config, tensors)
        if nearest is None or len(missing) < len(nearest):
            nearest = missing
    assert nearest is not None
    return nearest
