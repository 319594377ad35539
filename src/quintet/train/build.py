"""Model, optimizer and engine of a run, on one device or spread over several processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.config.parallel import DDPConfig, DeepSpeedConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.model.pretrained import PretrainedModel
from quintet.processes import from_first, gathered, local_world, world
from quintet.tokenize import Tokenizer
from quintet.train.activation_checkpointing import checkpoint_activations
from quintet.train.compute import Compute, device_memory
from quintet.train.engine import Engine, TorchEngine
from quintet.train.learner import Learner
from quintet.train.model import make_model, weights_of
from quintet.train.objective import Objective
from quintet.train.optimizer import build_optimizer
from quintet.train.parallel.shard import fill, make_mesh, replicate, shard
from quintet.train.parallel.strategy import (
    Strategy,
    Surroundings,
    choose_strategy,
    counts_of,
    mesh_shape,
    share_of_batch,
    state_bytes_of,
)


@dataclass(frozen=True)
class Built:
    """What takes the steps of a run. ``parameters`` counts those of the whole model and those of them that are trained;
    ``shape`` is this process's part of a batch; ``learner`` is Model and loss, in what spreads them."""

    model: Model
    learner: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    engine: Engine
    strategy: Strategy
    shape: BatchShape
    parameters: tuple[int, int]


def build_engine(
    config: RunConfig,
    tokenizer: Tokenizer,
    objective: Objective,
    compute: Compute,
    weights: dict[str, Tensor] | None = None,
) -> Built:
    """The engine of ``config`` in this process, its model begun with ``weights`` where there are any.

    Raises UserError for what cannot be spread as the run file says.
    """
    around = Surroundings(world(), local_world(), device_memory(compute.device, local_world()))
    shape = share_of_batch(config.batch, around.processes)
    # Laid out first, so that weights which are to be sharded are not there as a whole in every process.
    model = make_model(config, tokenizer, outline=True)
    counts = counts_of(model)
    strategy = choose_strategy(config.parallel, around, state_bytes_of(config, *counts))
    if strategy.sharded and compute.precision == "fp16":
        raise UserError(
            "train.precision: fp16 scales its loss, which is not done for sharded weights; take bf16 or fp32"
        )
    if not strategy.sharded:
        model = make_model(config, tokenizer, weights).to(compute.device)
    checkpoint_activations(model.blocks, config.train.activation_checkpointing)
    if compute.compile:
        _compile_blocks(model, compute)
    learner: nn.Module = Learner(model, objective)
    if strategy.sharded:
        mesh = make_mesh(mesh_shape(strategy, around), compute.device.type)
        home = torch.device("cpu") if getattr(strategy.config, "offload", False) else compute.device
        library = isinstance(model, PretrainedModel)
        values = _read_by_first(config, tokenizer, model) if library else _own(config, tokenizer, weights)
        shard(learner, strategy, mesh, compute)
        fill(model, values, home, from_first=library)
    elif isinstance(strategy.config, DDPConfig) and world() > 1:
        learner = replicate(learner, strategy.config, compute)
    elif isinstance(strategy.config, DeepSpeedConfig):
        from quintet.train.deepspeed.start import start_deepspeed

        engine = start_deepspeed(learner, model, config, shape, compute)
        return Built(model, learner, engine.optimizer, engine.scaler, engine, strategy, shape, counts)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    engine = TorchEngine(learner, model, optimizer, scaler, config, shape, compute)
    return Built(model, learner, optimizer, scaler, engine, strategy, shape, counts)


def _own(config: RunConfig, tokenizer: Tokenizer, weights: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """The first values of our own transformer, which every process computes by itself."""
    # PyTorch's own initialisations read the shapes of whole modules, which those of a sharded model no longer are.
    yield from weights_of(config, make_model(config, tokenizer, outline=True), weights)


def _read_by_first(config: RunConfig, tokenizer: Tokenizer, outline: PretrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a model of the transformers library, which the first process reads; the others have a
    tensor of the same shape for each, to receive it in. What is found out with numbers is told to ``outline``."""
    read: list[PretrainedModel] = []
    from_first(lambda: read.append(_read_as(outline, config, tokenizer)))
    found = (read[0].linear_head, read[0].abilities, read[0].notes) if read else None
    outline.linear_head, outline.abilities, outline.notes = gathered(found)[0]
    there = {name: value for model in read for name, value in _tensors(model)}
    shapes = [(name, value.shape, value.dtype) for name, value in _tensors(outline)]
    return ((name, there[name] if there else torch.empty(shape, dtype=dtype)) for name, shape, dtype in shapes)


def _read_as(outline: PretrainedModel, config: RunConfig, tokenizer: Tokenizer) -> PretrainedModel:
    """The model itself. Raises UserError when its weights are other ones than those of ``outline``."""
    model = make_model(config, tokenizer)
    assert isinstance(model, PretrainedModel)
    if {name for name, _ in _tensors(model)} != {name for name, _ in _tensors(outline)}:
        raise UserError(
            "model.name_or_path: its config.json is wrong on which matrices are tied, which could not be seen before "
            "the weights were here; start again"
        )
    return model


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _compile_blocks(model: Model, compute: Compute) -> None:
    """Compile block by block: half the time of compiling the whole, and one kernel serves all layers."""
    if compute.device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError(
            "train.compile: needs a C++ compiler, which this machine lacks; install g++ or set compile: false"
        )
    for block in model.blocks:
        block.compile()
