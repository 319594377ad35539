"""Model, optimizer and engine of a run, on one device or spread over several processes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.config.parallel import DDPConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.processes import local_world, world
from quintet.tokenize import Tokenizer
from quintet.train.activation_checkpointing import checkpoint_activations
from quintet.train.compute import Compute
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
    device_memory,
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
    # Our own transformer is laid out first, so that weights which are to be sharded are never there as a whole.
    own = isinstance(config.model, TransformerConfig)
    model = make_model(config, tokenizer, outline=True) if own else make_model(config, tokenizer)
    counts = _counts(model)
    strategy = choose_strategy(config.parallel, around, state_bytes_of(config, *counts))
    if not strategy.sharded:
        model = (make_model(config, tokenizer, weights) if own else model).to(compute.device)
    if strategy.sharded and compute.precision == "fp16":
        raise UserError(
            "train.precision: fp16 scales its loss, which is not done for sharded weights; take bf16 or fp32"
        )
    checkpoint_activations(model.blocks, config.train.activation_checkpointing)
    if compute.compile:
        _compile_blocks(model, compute)
    learner: nn.Module = Learner(model, objective)
    if strategy.sharded:
        shard(learner, strategy, make_mesh(mesh_shape(strategy, around), compute.device.type), compute)
        if own:
            home = torch.device("cpu") if getattr(strategy.config, "offload", False) else compute.device
            fill(model, weights_of(config, model, weights), home)
    elif isinstance(strategy.config, DDPConfig):
        learner = replicate(learner, strategy.config, compute)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    engine = TorchEngine(learner, model, optimizer, scaler, config, shape, compute)
    return Built(model, learner, optimizer, scaler, engine, strategy, shape, counts)


def _counts(model: Model) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _compile_blocks(model: Model, compute: Compute) -> None:
    """Compile block by block: half the time of compiling the whole, and one kernel serves all layers."""
    if compute.device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError(
            "train.compile: needs a C++ compiler, which this machine lacks; install g++ or set compile: false"
        )
    for block in model.blocks:
        block.compile()
