"""Everything a run needs, built from its run file in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from quintet.config.schema import RunConfig
from quintet.config.training import TrainConfig
from quintet.data.batch import TrainData, ValidationData
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError
from quintet.model import Transformer, build_model
from quintet.model.count import flops_per_token
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.track import Tracker, build_trackers
from quintet.track.console import Reporter
from quintet.train.checkpoint import (
    Checkpointer,
    Progress,
    checkpoint_path,
    checkpoint_steps,
    load_training,
    read_progress,
)
from quintet.train.compute import Compute, choose_compute, keep_freed_memory, make_deterministic, measure_peak
from quintet.train.optimizer import build_optimizer
from quintet.train.run_folder import open_run_folder
from quintet.train.step import rehearse


@dataclass
class Run:
    """A run that is ready to train, and how far it is."""

    config: RunConfig
    folder: Path
    steps: int
    compute: Compute
    tokenizer: Tokenizer
    data: TrainData
    validation: ValidationData | None
    model: Transformer
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpointer: Checkpointer
    trackers: list[Tracker]
    reporter: Reporter
    bytes_per_token: np.ndarray
    flops_per_token: int
    peak: float
    progress: Progress


def set_up(config: RunConfig, reporter: Reporter) -> Run:
    """Build the run of ``config``, continued from its last checkpoint if there is one.

    Raises UserError for everything that the user can mend: data, tokenizer, memory, an earlier run in the same folder.
    """
    folder, changes = open_run_folder(config)
    compute = choose_compute(config.train)
    prepared = prepare(config, progress=reporter.preparing)
    vocab_size = model_vocabulary(config, prepared.tokenizer)
    steps = total_steps(config.train, config.batch.samples, config.data.sequence_length, prepared.train.epoch_samples)
    progress = _found_progress(folder, prepared)
    if progress.step == 0:
        _keep_tokenizer(prepared.tokenizer, folder / "tokenizer")

    make_deterministic()
    if compute.device.type == "cpu":
        keep_freed_memory()
    model = build_model(config.model, vocab_size, context_length(config), config.seed).to(compute.device)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    if compute.compile:
        _compile_blocks(model, compute)
    if progress.step < steps:
        rehearse(model, optimizer, config, compute, prepared.tokenizer.vocab_size)
    if progress.step:
        load_training(checkpoint_path(folder / "checkpoints", progress.step), model, optimizer)
        scaler.load_state_dict(progress.scaler or {})
    run = Run(
        config=config,
        folder=folder,
        steps=steps,
        compute=compute,
        tokenizer=prepared.tokenizer,
        data=prepared.train,
        validation=prepared.validation,
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        checkpointer=Checkpointer(folder / "checkpoints", config.checkpoint),
        trackers=build_trackers(config.track, folder, progress.step),
        reporter=reporter,
        bytes_per_token=prepared.tokenizer.bytes_per_token(),
        flops_per_token=flops_per_token(config.model, vocab_size, config.data.sequence_length).total,
        peak=measure_peak(compute),
        progress=progress,
    )
    _introduce(run, changes)
    return run


def context_length(config: RunConfig) -> int:
    """Most positions that the model of ``config`` is built for."""
    return config.model.context_length or config.data.sequence_length


def model_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> int:
    """Rows of the model's embedding. Raises UserError when the tokenizer has more ids than that."""
    rows = config.model.vocab_size or tokenizer.vocab_size
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size: {rows} rows are fewer than the tokenizer's {tokenizer.vocab_size} ids; raise it, or "
            "leave it out to take the tokenizer's"
        )
    return rows


def total_steps(train: TrainConfig, batch_samples: int, sequence_length: int, epoch_samples: int) -> int:
    """Optimizer steps of a run, whichever of steps, tokens and epochs says how long it is."""
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / (batch_samples * sequence_length))
    assert train.epochs is not None
    return math.ceil(train.epochs * epoch_samples / batch_samples)


def _found_progress(folder: Path, prepared: Prepared) -> Progress:
    """How far the run in ``folder`` is. Raises UserError if it was trained on other tokens than those prepared now."""
    fresh = Progress(tokenizer=prepared.tokenizer.fingerprint, corpus=prepared.fingerprint)
    checkpoints = folder / "checkpoints"
    steps = checkpoint_steps(checkpoints)
    if not steps:
        return fresh
    found = read_progress(checkpoint_path(checkpoints, steps[-1]))
    for name in ("tokenizer", "corpus"):
        if getattr(found, name) != getattr(fresh, name):
            raise UserError(
                f"{folder}: cannot be continued: the {name} is not the one it was trained with "
                f"({getattr(found, name)} then, {getattr(fresh, name)} now); restore the sources, or choose "
                "another name (name=…)"
            )
    return found


def _keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """A run folder is enough to use its model, so the tokenizer lies in it."""
    if folder.exists() and load_tokenizer(folder).fingerprint == tokenizer.fingerprint:
        return
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder)


def _compile_blocks(model: Transformer, compute: Compute) -> None:
    """Compile block by block: half the time of compiling the whole, and one kernel serves all layers."""
    if compute.device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError(
            "train.compile: needs a C++ compiler, which this machine lacks; install g++ or set compile: false"
        )
    for block in model.blocks:
        block.compile()


def _introduce(run: Run, changes: list[str]) -> None:
    """Say what was chosen, before the first step."""
    say, config, compute = run.reporter.say, run.config, run.compute
    parameters = sum(p.numel() for p in run.model.parameters())
    say(f"{config.name}: {parameters / 1e6:.2f} M parameters, vocabulary {run.tokenizer.vocab_size}, in {run.folder}")
    epochs = run.steps * config.batch.samples / run.data.epoch_samples
    say(
        f"data: {run.data.epoch_samples:,} samples of {config.data.sequence_length} tokens; "
        f"{run.steps:,} steps of {config.batch.tokens:,} tokens are {epochs:.2f} epochs"
    )
    mode = "compiled" if compute.compile else "eager"
    say(
        f"compute: {compute.device} in {compute.precision} ({compute.reason}), {mode}; "
        f"matmul {run.peak / 1e9:,.0f} GFLOP/s"
    )
    for change in changes:
        say(f"changed since the run began: {change}")
    if run.progress.step:
        say(f"continuing from step {run.progress.step}")
