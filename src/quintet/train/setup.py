"""Everything a run needs, built from its run file in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet.config.length import total_steps
from quintet.config.places import Places
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch, TrainData, ValidationData
from quintet.data.order import left_out_line, nothing_of_lines, stage_facts, stage_lines
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError
from quintet.model import Model
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.track import Tracked, Tracker, build_trackers
from quintet.track.console import Reporter
from quintet.track.system import system_figures
from quintet.train.check import check_training
from quintet.train.checkpoint import (
    Checkpointer,
    Progress,
    checkpoint_path,
    checkpoint_steps,
    load_training,
    read_progress,
)
from quintet.train.compute import Compute, choose_compute, keep_freed_memory, make_deterministic, measure_peak
from quintet.train.fixed_batch import introduction
from quintet.train.model import make_model, make_objective, training_flops
from quintet.train.objective import Objective
from quintet.train.optimizer import build_optimizer
from quintet.train.rhythm import Rhythm, rhythm_of
from quintet.train.run_folder import find_run_folder, write_run_file
from quintet.train.schedule import learning_rate
from quintet.train.start import starting_weights
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
    objective: Objective
    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpointer: Checkpointer
    trackers: list[Tracker]
    reporter: Reporter
    bytes_per_token: np.ndarray
    flops_per_token: int
    peak: float
    progress: Progress
    rhythm: Rhythm

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, counted from 0, as the model gets it."""
        step = self.config.data.batch_index(step)
        return self.objective.prepare(self.data.batch(step), "train", step)


def set_up(config: RunConfig, reporter: Reporter, places: Places | None = None) -> Run:
    """Build the run of ``config``, continued from its last checkpoint if there is one.

    Raises UserError for everything that the user can mend: data, tokenizer, memory, an earlier run in the same folder.
    """
    check_training(config)
    folder, changes = find_run_folder(config)
    compute = choose_compute(config.train)
    if config.dropout_schedule.kind in ("linear", "triangle"):
        compute = replace(compute, compile=False)  # each new rate would compile the model anew
    prepared = prepare(config, progress=reporter.preparing)
    objective = make_objective(config, prepared.tokenizer)
    steps = total_steps(config.train, config.batch.samples, config.data.sequence_length, prepared.train.epoch_samples)
    for step in (1, steps):  # what a library refuses, it refuses now
        learning_rate(config.schedule, config.optimizer.lr, step, steps)
    progress = _found_progress(folder, prepared, stage_facts(config, prepared.train.order))
    write_run_file(config, folder, places)
    if progress.step == 0:
        _keep_tokenizer(prepared.tokenizer, folder / "tokenizer")

    make_deterministic()
    if compute.device.type == "cpu":
        keep_freed_memory()
    start = starting_weights(config, prepared.tokenizer) if progress.step == 0 else None
    model = make_model(config, prepared.tokenizer, start.weights if start else None).to(compute.device)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    if compute.compile:
        _compile_blocks(model, compute)
    if progress.step < steps and not config.evaluate.only:
        rehearse(model, objective, optimizer, config, compute)
    if progress.step:
        load_training(checkpoint_path(folder / "checkpoints", progress.step), model, optimizer)
        scaler.load_state_dict(progress.scaler or {})
    system = system_figures(compute.device, compute.precision)
    run = Run(
        config=config,
        folder=folder,
        steps=steps,
        compute=compute,
        tokenizer=prepared.tokenizer,
        data=prepared.train,
        validation=prepared.validation,
        objective=objective,
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        checkpointer=Checkpointer(folder / "checkpoints", config.checkpoint),
        # A run that begins anew drops also the records of step 0.
        trackers=build_trackers(Tracked(config, folder, progress.step or -1, system, reporter.say)),
        reporter=reporter,
        bytes_per_token=prepared.tokenizer.bytes_per_token(),
        flops_per_token=training_flops(config, prepared.tokenizer.vocab_size).total,
        peak=measure_peak(compute),
        progress=progress,
        rhythm=rhythm_of(config, steps, prepared.train.epoch_samples),
    )
    notes = [*left_out_line(prepared.left_out), *nothing_of_lines(prepared.validation)]
    notes += [*stage_lines(config, prepared.train.order)]
    notes += start.notes if start else []
    if config.data.fixed_batch:
        notes.append(introduction(config, run.batch(0)))
    _introduce(run, [*notes, *(f"changed since the run began: {line}" for line in changes)])
    return run


def _found_progress(folder: Path, prepared: Prepared, stages: list[list[Any]]) -> Progress:
    """How far the run in ``folder`` is. Raises UserError if it was trained on other tokens than those prepared now, or
    with other ``stages`` as far as it is."""
    fresh = Progress(tokenizer=prepared.tokenizer.fingerprint, corpus=prepared.fingerprint, stages=stages)
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
    _check_stages(folder, found, stages)
    return replace(found, stages=stages)


def _check_stages(folder: Path, found: Progress, stages: list[list[Any]]) -> None:
    """Stages that lie ahead may change, those that the run has been through may not."""
    begun, now = ([one for one in some if one[0] < found.step] for some in (found.stages, stages))
    if begun == now:
        return
    ends = ", ".join(f"until: {start:,}" for start, _ in begun[1:])
    then = f"stages with {ends}" if ends else "one stage" if begun else "no stages"
    raise UserError(
        f"data.stages: {folder} was trained up to step {found.step:,} with {then}, and this run file has others before "
        "that step (fractions move with the run's steps); write `until` in steps, or choose another name (name=…)"
    )


def _keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """A run folder is enough to use its model, so the tokenizer lies in it."""
    if folder.exists() and load_tokenizer(folder).fingerprint == tokenizer.fingerprint:
        return
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder)


def _compile_blocks(model: Model, compute: Compute) -> None:
    """Compile block by block: half the time of compiling the whole, and one kernel serves all layers."""
    if compute.device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError(
            "train.compile: needs a C++ compiler, which this machine lacks; install g++ or set compile: false"
        )
    for block in model.blocks:
        block.compile()


def _parameters(model: Model) -> str:
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    some = "" if trainable == total else f", {trainable / 1e6:.2f} M of them trained"
    return f"{total / 1e6:.2f} M parameters{some}"


def _introduce(run: Run, notes: list[str]) -> None:
    """Say what was chosen, before the first step."""
    say, config, compute = run.reporter.say, run.config, run.compute
    say(f"{config.name}: {_parameters(run.model)}, vocabulary {run.tokenizer.vocab_size}, in {run.folder}")
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
    model = config.model
    bidirectional = model.kind == "transformer" and model.attention.kind == "bidirectional"
    if bidirectional and config.loss.kind == "next_token":
        say(
            "model.attention.kind: bidirectional lets each position see the token that it is to predict, so that the "
            "loss means nothing; loss.kind: masked hides what is to be predicted"
        )
    if config.loss.kind == "masked" and config.sample.prompts:
        say("no samples: with loss.kind: masked the model learns to fill in tokens, not to write on")
    for note in notes:
        say(note)
    if run.progress.step:
        say(f"continuing from step {run.progress.step}")
