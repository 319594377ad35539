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
from quintet.processes import all_gather, broadcast_from_rank0, local_world_size, world_size
from quintet.tokenize import Tokenizer
from quintet.train.activation_checkpointing import checkpoint_activations
from quintet.train.compute import Compute, device_memory
from quintet.train.engine import Engine, TorchEngine
from quintet.train.loss_module import LossModule
from quintet.train.model import make_model, weights_of
from quintet.train.objective import Objective
from quintet.train.optimizer import build_optimizer, check_sharded
from quintet.train.parallel.shard import load_sharded, make_mesh, replicate, shard
from quintet.train.parallel.strategy import (
    Environment,
    Strategy,
    choose_strategy,
    counts_of,
    mesh_shape,
    share_of_batch,
    state_bytes_of,
)


@dataclass(frozen=True)
class Built:
    """What takes the steps of a run. ``parameters`` counts those of the whole model and those of them that are trained;
    ``shape`` is this process's part of a batch; ``loss_module`` is Model and loss, in what spreads them."""

    model: Model
    loss_module: nn.Module
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
    environment = Environment(world_size(), local_world_size(), device_memory(compute.device, local_world_size()))
    shape = share_of_batch(config.batch, environment.processes)
    # Laid out first, so that weights which are to be sharded are not there as a whole in every process.
    model = make_model(config, tokenizer, meta=True)
    counts = counts_of(model)
    strategy = choose_strategy(config.parallel, environment, state_bytes_of(config, *counts))
    if strategy.sharded and compute.precision == "fp16":
        raise UserError(
            "train.precision: fp16 scales its loss, which is not done for sharded weights; take bf16 or fp32"
        )
    if strategy.sharded:
        check_sharded(config.optimizer)
    else:
        model = make_model(config, tokenizer, weights).to(compute.device)
    checkpoint_activations(model.blocks, config.train.activation_checkpointing)
    if compute.compile:
        _compile_blocks(model, compute)
    loss_module: nn.Module = LossModule(model, objective)
    if strategy.sharded:
        mesh = make_mesh(mesh_shape(strategy, environment), compute.device.type)
        home = torch.device("cpu") if getattr(strategy.config, "offload", False) else compute.device
        library = isinstance(model, PretrainedModel)
        values = _read_by_first(config, tokenizer, model) if library else _own(config, tokenizer, weights)
        shard(loss_module, strategy, mesh, compute)
        load_sharded(model, values, home, from_rank0=library)
    elif isinstance(strategy.config, DDPConfig) and world_size() > 1:
        loss_module = replicate(loss_module, strategy.config, compute)
    elif isinstance(strategy.config, DeepSpeedConfig):
        from quintet.train.deepspeed.start import start_deepspeed

        engine = start_deepspeed(loss_module, model, config, shape, compute)
        return Built(model, loss_module, engine.optimizer, engine.scaler, engine, strategy, shape, counts)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    engine = TorchEngine(loss_module, model, optimizer, scaler, config, shape, compute)
    return Built(model, loss_module, optimizer, scaler, engine, strategy, shape, counts)


def _own(config: RunConfig, tokenizer: Tokenizer, weights: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """The first values of our own transformer, which every process computes by itself."""
    # PyTorch's own initialisations read the shapes of whole modules, which those of a sharded model no longer are.
    yield from weights_of(config, make_model(config, tokenizer, meta=True), weights)


def _read_by_first(
    config: RunConfig, tokenizer: Tokenizer, meta_model: PretrainedModel
) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a model of the transformers library, which the first process reads; the others have a
    tensor of the same shape for each, to receive it in. What is found out with numbers is told to ``meta_model``."""
    read: list[PretrainedModel] = []
    broadcast_from_rank0(lambda: read.append(_read_as(meta_model, config, tokenizer)))
    found = (read[0].linear_head, read[0].abilities, read[0].notes) if read else None
    meta_model.linear_head, meta_model.abilities, meta_model.notes = all_gather(found)[0]
    there = {name: value for model in read for name, value in _tensors(model)}
    shapes = [(name, value.shape, value.dtype) for name, value in _tensors(meta_model)]
    return ((name, there[name] if there else torch.empty(shape, dtype=dtype)) for name, shape, dtype in shapes)


def _read_as(meta_model: PretrainedModel, config: RunConfig, tokenizer: Tokenizer) -> PretrainedModel:
    """The model itself. Raises UserError when its weights are other ones than those of ``meta_model``."""
    model = make_model(config, tokenizer)
    assert isinstance(model, PretrainedModel)
    if {name for name, _ in _tensors(model)} != {name for name, _ in _tensors(meta_model)}:
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
