"""Model, optimizer and engine of a run, on one device or over several processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quintet.config.parallel import DDPConfig
from quintet.config.schedule import dropout_changes
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.model.dropout import follow_schedule
from quintet.model.hf.pretrained import PretrainedModel
from quintet.processes import local_world_size, world_size
from quintet.tokenize import Tokenizer
from quintet.train.checkpoint import read_state
from quintet.train.compute import Compute, check_compiler, device_memory
from quintet.train.engine import Engine, TorchEngine
from quintet.train.library_optimizers import check_sharded
from quintet.train.loss import LossModule, Objective
from quintet.train.model import build_run_model, checkpoint_activations
from quintet.train.optimizer import build_optimizer
from quintet.train.parallel.group import timeout
from quintet.train.parallel.parallelize import load_sharded, make_mesh, replicate, shard
from quintet.train.parallel.strategy import (
    Environment,
    Strategy,
    choose_strategy,
    counts_of,
    mesh_shape,
    share_of_batch,
    state_bytes_of,
)
from quintet.train.weights import first_weights


@dataclass(frozen=True)
class Built:
    """An engine and its parts.

    ``loss_module`` is the LossModule, inside DDP's wrapper if there is one. ``shape`` is this process's part of a
    batch. ``parameters`` are the numbers of all parameters and of trainable ones.
    """

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
    """Build the engine of ``config`` in this process; the model starts from ``weights`` if they are given.

    ``weights`` are fp32, by name and in the shapes of the model's parameters. Raises UserError if the model cannot be
    spread or compiled as the run file says.
    """
    environment = Environment(world_size(), local_world_size(), device_memory(compute.device, local_world_size()))
    shape = share_of_batch(config.batch, environment.processes)
    # On the meta device first: no process needs memory for all weights if they will be sharded.
    model = build_run_model(config, tokenizer, meta=True)
    counts = counts_of(model)
    strategy = choose_strategy(config.parallel, environment, state_bytes_of(config, model))
    if strategy.sharded and compute.precision == "fp16":
        raise UserError(
            "train.precision: fp16 needs a scaled loss, which is not supported for sharded weights; take bf16 or fp32"
        )
    if strategy.sharded:
        check_sharded(config.optimizer)
    else:
        model = build_run_model(config, tokenizer, weights).to(compute.device)
    if dropout_changes(config.dropout_schedule):
        follow_schedule(model, compute.device)
    checkpoint_activations(model.blocks, config.train.activation_checkpointing)
    if compute.compile:
        _compile_blocks(model, compute)
    parts = _Parts(config, tokenizer, weights, compute, environment, strategy, shape, model)
    loss_module, engine = STRATEGIES[strategy.kind](parts, LossModule(model, objective))
    return Built(model, loss_module, engine.optimizer, engine.scaler, engine, strategy, shape, counts)


@dataclass(frozen=True)
class _Parts:
    """What an engine is built from, with the model before it is spread over the processes."""

    config: RunConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor] | None
    compute: Compute
    environment: Environment
    strategy: Strategy
    shape: BatchShape
    model: Model


Spread = tuple[nn.Module, Engine]
"""The LossModule, inside the wrapper that spreads it if there is one, and its engine."""


def _torch_engine(parts: _Parts, loss_module: nn.Module) -> Spread:
    config, compute = parts.config, parts.compute
    optimizer = build_optimizer(config.optimizer, parts.model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    engine = TorchEngine(loss_module, parts.model, optimizer, scaler, config, parts.shape, compute)
    return loss_module, engine


def _replicated(parts: _Parts, loss_module: LossModule) -> Spread:
    assert isinstance(parts.strategy.config, DDPConfig)
    if world_size() == 1:
        return _torch_engine(parts, loss_module)
    return _torch_engine(parts, replicate(loss_module, parts.strategy.config, parts.compute))


def _sharded(parts: _Parts, loss_module: LossModule) -> Spread:
    config, compute, model = parts.config, parts.compute, parts.model
    mesh_of = mesh_shape(parts.strategy, parts.environment)
    mesh = make_mesh(mesh_of, compute.device.type, timeout(config))
    home = torch.device("cpu") if getattr(parts.strategy.config, "offload", False) else compute.device
    library = isinstance(model, PretrainedModel)
    values = first_weights(config, parts.tokenizer, model, parts.weights)
    shard(loss_module, parts.strategy, mesh, compute)
    load_sharded(model, values, home, from_rank0=library)
    return _torch_engine(parts, loss_module)


def _in_deepspeed(parts: _Parts, loss_module: LossModule) -> Spread:
    from quintet.train.integrations.deepspeed import start_deepspeed

    engine = start_deepspeed(loss_module, parts.model, parts.config, parts.shape, parts.compute)
    return loss_module, engine


STRATEGIES: dict[str, Callable[[_Parts, LossModule], Spread]] = {
    "none": _torch_engine,
    "ddp": _replicated,
    "fsdp": _sharded,
    "hsdp": _sharded,
    "deepspeed": _in_deepspeed,
}
"""The function of each kind of `parallel` that spreads the model and builds its engine. `choose_strategy` replaces auto
by one of these."""


def _compile_blocks(model: Model, compute: Compute) -> None:
    """Compile each block by itself: this takes half the time of compiling the model, and all layers share a kernel."""
    check_compiler(compute.device)
    # DDP would split each block where a bucket of gradients ends, to start sending within the backward pass of a
    # compiled graph. Blocks are smaller than buckets.
    torch._dynamo.config.optimize_ddp = False  # pyright: ignore[reportPrivateUsage]
    for block in model.blocks:
        block.compile()  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)


def load_training(path: Path, engine: Engine) -> None:
    """Load weights and optimizer state of the checkpoint at ``path`` into ``engine``.

    The number of processes and the kind of sharding may differ from those that wrote it.
    """
    state = engine.state()
    read_state(path, state, together=dist.is_initialized())
    engine.set_state(state)
