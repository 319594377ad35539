"""Model, optimizer and engine of a run, built on one device or spread over several processes."""

from __future__ import annotations

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
from quintet.train.weights import first_weights


@dataclass(frozen=True)
class Built:
    """An engine with its parts.

    ``parameters`` counts those of the whole model and those that are trained, ``shape`` is this process's part of a
    batch, and ``loss_module`` the LossModule in the wrapper that spreads it.
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
    """The engine of ``config`` in this process; its model starts from ``weights`` if they are given.

    They are fp32, by the names and in the shapes of the model's parameters. Raises UserError for what cannot be spread
    or compiled as the run file says.
    """
    environment = Environment(world_size(), local_world_size(), device_memory(compute.device, local_world_size()))
    shape = share_of_batch(config.batch, environment.processes)
    # Laid out first, so that weights which are to be sharded are not there as a whole in every process.
    model = build_run_model(config, tokenizer, meta=True)
    counts = counts_of(model)
    strategy = choose_strategy(config.parallel, environment, state_bytes_of(config, model))
    if strategy.sharded and compute.precision == "fp16":
        raise UserError(
            "train.precision: fp16 scales its loss, which is not done for sharded weights; take bf16 or fp32"
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
    unspread = _Unspread(config, tokenizer, weights, compute, environment, strategy, shape, model)
    loss_module, engine = STRATEGIES[strategy.kind](unspread, LossModule(model, objective))
    return Built(model, loss_module, engine.optimizer, engine.scaler, engine, strategy, shape, counts)


@dataclass(frozen=True)
class _Unspread:
    """A model before it is spread over the processes, and all that its engine is built from."""

    config: RunConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor] | None
    compute: Compute
    environment: Environment
    strategy: Strategy
    shape: BatchShape
    model: Model


Spread = tuple[nn.Module, Engine]
"""The LossModule in the wrapper that spreads it, and its engine."""


def _whole(unspread: _Unspread, loss_module: nn.Module) -> Spread:
    config, compute = unspread.config, unspread.compute
    optimizer = build_optimizer(config.optimizer, unspread.model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    engine = TorchEngine(loss_module, unspread.model, optimizer, scaler, config, unspread.shape, compute)
    return loss_module, engine


def _replicated(unspread: _Unspread, loss_module: LossModule) -> Spread:
    assert isinstance(unspread.strategy.config, DDPConfig)
    if world_size() == 1:
        return _whole(unspread, loss_module)
    return _whole(unspread, replicate(loss_module, unspread.strategy.config, unspread.compute))


def _sharded(unspread: _Unspread, loss_module: LossModule) -> Spread:
    config, compute, model = unspread.config, unspread.compute, unspread.model
    mesh_of = mesh_shape(unspread.strategy, unspread.environment)
    mesh = make_mesh(mesh_of, compute.device.type, timeout(config))
    home = torch.device("cpu") if getattr(unspread.strategy.config, "offload", False) else compute.device
    library = isinstance(model, PretrainedModel)
    values = first_weights(config, unspread.tokenizer, model, unspread.weights)
    shard(loss_module, unspread.strategy, mesh, compute)
    load_sharded(model, values, home, from_rank0=library)
    return _whole(unspread, loss_module)


def _in_deepspeed(unspread: _Unspread, loss_module: LossModule) -> Spread:
    from quintet.train.integrations.deepspeed import start_deepspeed

    engine = start_deepspeed(loss_module, unspread.model, unspread.config, unspread.shape, unspread.compute)
    return loss_module, engine


STRATEGIES: dict[str, Callable[[_Unspread, LossModule], Spread]] = {
    "none": _whole,
    "ddp": _replicated,
    "fsdp": _sharded,
    "hsdp": _sharded,
    "deepspeed": _in_deepspeed,
}
"""For each kind of `parallel`, what spreads the model. There is none for auto, because `choose_strategy` replaces
it."""


def _compile_blocks(model: Model, compute: Compute) -> None:
    """Compile block by block: half the time of compiling the whole, and one kernel serves all layers."""
    check_compiler(compute.device)
    # DDP would have each block cut where a bucket of gradients ends, so that sending begins within the backward pass of
    # a compiled graph; blocks are smaller than that.
    torch._dynamo.config.optimize_ddp = False  # pyright: ignore[reportPrivateUsage]
    for block in model.blocks:
        block.compile()  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)


def load_training(path: Path, engine: Engine) -> None:
    """Load weights and optimizer state of the checkpoint at ``path`` into ``engine``, however they are spread over
    processes now and were when it was written."""
    state = engine.state()
    read_state(path, state, together=dist.is_initialized())
    engine.set_state(state)
