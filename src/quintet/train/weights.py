"""The initial weights of a run: random or trained, and their distribution to the processes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quintet.config.load import read_run_config
from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.names import run_named
from quintet.config.schema import RunConfig
from quintet.data.divide import validated_and_seen
from quintet.data.prepare import Prepared, find_prepared
from quintet.errors import UserError
from quintet.model import Model
from quintet.model.hf.pretrained import PretrainedModel
from quintet.model.hf.weights import Start, fitted, pretrained_weights
from quintet.model.init import first_values
from quintet.processes import all_gather, broadcast_from_rank0
from quintet.tokenize import Tokenizer
from quintet.train.model import build_run_model, drawn
from quintet.train.sizes import context_length, extra_rows, model_vocabulary
from quintet.train.trained import load_trained


def starting_weights(config: RunConfig, tokenizer: Tokenizer) -> Start | None:
    """Return the trained fp32 weights from which the run of ``config`` starts, None if it starts from random ones.

    Raises UserError if they do not exist or are of another architecture.
    """
    model = config.model
    if not isinstance(model, TransformerConfig) or not isinstance(model.init, PretrainedInitConfig):
        return None
    rows = model.rows(model_vocabulary(config, tokenizer) + extra_rows(config))
    path = model.init.path
    if (folder := run_named(path)) is not None:
        return _from_run(str(folder), model, rows, context_length(config), tokenizer)
    return pretrained_weights(path, model, rows, context_length(config), model.init.revision)


def seen_before(config: RunConfig, prepared: Prepared) -> list[str]:
    """Return a line for each earlier run that was, or may have been, trained on the held-out data of ``config``.

    The earlier runs are the one whose weights ``config`` starts from, the one which that run started from, and so on.
    """
    lines: list[str] = []
    model, visited = config.model, set[Path]()
    while isinstance(model, TransformerConfig) and isinstance(model.init, PretrainedInitConfig):
        folder = run_named(model.init.path)
        if folder is None or folder.resolve() in visited or prepared.validation is None:
            break
        visited.add(folder.resolve())
        other = read_run_config(folder)
        theirs = find_prepared(other)
        if theirs is None or theirs.tokenizer.fingerprint != prepared.tokenizer.fingerprint:
            why = "its data is not here" if theirs is None else "its tokens are of another tokenizer"
            lines.append(f"validation: it is unknown if {folder} was trained on the held-out data ({why})")
        else:
            held, seen = validated_and_seen(config, prepared.stores, other, theirs.stores)
            if seen:
                lines.append(
                    f"validation: {folder}, from which this run starts, was trained on {seen:,} of the {held:,} "
                    "held-out documents; hold out the same ones (its seed, sources and data.validation), or set "
                    "data.validation_sources"
                )
        model = other.model
    return lines


def _from_run(run: str, model: TransformerConfig, rows: int, positions: int, tokenizer: Tokenizer) -> Start:
    trained = load_trained(run)
    theirs = trained.config.model
    if not isinstance(theirs, TransformerConfig):
        raise UserError(f"model.init.path: {run} trained a model of kind {theirs.kind}; `quintet export` it first")
    other = trained.tokenizer.fingerprint != tokenizer.fingerprint
    own = f"its own is tokenizer={{kind: saved, path: {run}}}"
    if other and rows < trained.model.vocab_size:
        raise UserError(f"tokenizer: has fewer ids than that of {run}, which is another one; {own}")
    start = fitted(trained.model.state_dict(), theirs, model, trained.model.vocab_size, rows, positions, run)
    if other:
        start.notes.append(f"tokenizer: {run} was trained with another one, so its ids stand for other texts; {own}")
    return start


def first_weights(
    config: RunConfig, tokenizer: Tokenizer, meta_model: Model, weights: dict[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and initial value of each parameter of ``meta_model``, on the meta device and not yet sharded.

    Values are fp32, in the shapes of the parameters. Every process computes those of Quintet's transformer, or takes
    them from ``weights`` by name. Rank 0 reads those of a model of the transformers library, and its buffers. Raises
    UserError as ``build_pretrained`` does.
    """
    if isinstance(meta_model, PretrainedModel):
        return _read_on_rank0(config, tokenizer, meta_model)
    # PyTorch's initialisations read the shapes of whole modules, so they need a model that will not be sharded.
    return weights_of(config, build_run_model(config, tokenizer, meta=True), weights)


def _read_on_rank0(
    config: RunConfig, tokenizer: Tokenizer, meta_model: PretrainedModel
) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of a model of the transformers library by name.

    Rank 0 reads them. In the other processes each is an empty tensor of its shape and dtype, to receive the value.
    ``meta_model`` gets the properties that only reading shows.
    """
    read: list[PretrainedModel] = []
    broadcast_from_rank0(lambda: read.append(_read_as(meta_model, config, tokenizer)))
    properties = (read[0].linear_head, read[0].abilities, read[0].notes) if read else None
    meta_model.linear_head, meta_model.abilities, meta_model.notes = all_gather(properties)[0]
    values = {name: value for model in read for name, value in _tensors(model)}
    shapes = [(name, value.shape, value.dtype) for name, value in _tensors(meta_model)]
    return ((name, values[name] if values else torch.empty(shape, dtype=dtype)) for name, shape, dtype in shapes)


def _read_as(meta_model: PretrainedModel, config: RunConfig, tokenizer: Tokenizer) -> PretrainedModel:
    """Read the model with its weights. Raises UserError if its names differ from those of ``meta_model``."""
    model = build_run_model(config, tokenizer)
    assert isinstance(model, PretrainedModel)
    if {name for name, _ in _tensors(model)} != {name for name, _ in _tensors(meta_model)}:
        raise UserError(
            "model.name_or_path: its config.json was wrong about tied matrices, which only reading the weights could "
            "show; start again"
        )
    return model


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the parameters and buffers of ``model``, of any shape and dtype."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def weights_of(config: RunConfig, model: Model, weights: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """Yield name and initial fp32 value, in its shape, of each parameter of a transformer on the meta device.

    The values are those of `build_run_model`, or those of ``weights`` by name if they are given.
    """
    assert isinstance(config.model, TransformerConfig)
    if weights is not None:
        yield from ((name, weights[name]) for name, _ in model.named_parameters())
        return
    yield from first_values(model, drawn(config.model, weights), config.seed)
