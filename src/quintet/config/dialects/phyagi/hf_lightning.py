"""PhyAGI's training arguments for the Trainers of the transformers library and of Lightning."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.other_keys import ARGUMENTS, MODULE, PL, STRATEGIES
from quintet.config.dialects.phyagi.parts import (
    ADAMW,
    batch_of_each,
    evaluation_size,
    length,
    optimizer,
    period,
    precision,
)
from quintet.config.dialects.phyagi.training_keys import ARGS
from quintet.config.keypath import path_of
from quintet.config.provenance import Origin, place_of
from quintet.config.train import fraction_of

TORCH = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "asgd": "ASGD",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "sgd": "SGD",
}
TORCH_SCHEDULES = {
    "constant": "ConstantLR",
    "cosine_annealing": "CosineAnnealingLR",
    "cosine_annealing_with_warm_restart": "CosineAnnealingWarmRestarts",
    "cyclic": "CyclicLR",
    "exponential": "ExponentialLR",
    "linear": "LinearLR",
    "multi_step": "MultiStepLR",
    "one_cycle": "OneCycleLR",
    "step": "StepLR",
}
OWN_SCHEDULES = {
    "warmup": "WarmupLR",
    "warmup_decay": "WarmupDecayLR",
    "warmup_decay_cooldown": "WarmupDecayCooldownLR",
}


def huggingface_rules(given: DialectFile, native: NativeBuilder) -> None:
    """A run in the Trainer of the transformers library; its arguments become our keys where there are such."""
    _hand_on(given, native, "transformers")
    _or(given, native, "optimizer.lr", "learning_rate", 5e-5)
    _or(given, native, "optimizer.weight_decay", "weight_decay", 0.0)
    native.set("optimizer.decay", "matrices")
    kind = given[f"{ARGS}.optim"] or "adamw"
    native.set("optimizer.kind", "adamw" if kind == "adamw" else "torch", f"{ARGS}.optim")
    if kind == "adamw":
        betas = [f"{ARGS}.adam_beta1", f"{ARGS}.adam_beta2"]
        found = [
            0.9 if given[betas[0]] is None else given[betas[0]],
            0.999 if given[betas[1]] is None else given[betas[1]],
        ]
        native.set("optimizer.betas", found, *betas)
        _or(given, native, "optimizer.eps", "adam_epsilon", 1e-8)
    else:
        native.set("optimizer.name", kind, f"{ARGS}.optim")
    _huggingface_schedule(given, native)
    _or(given, native, "train.micro_batch_size", "per_device_train_batch_size", 8)
    _or(given, native, "train.accumulation", "gradient_accumulation_steps", 1)
    batch_of_each(native, f"{ARGS}.per_device_train_batch_size", f"{ARGS}.gradient_accumulation_steps")
    _or(given, native, "evaluate.batch_size", "per_device_eval_batch_size", 8)
    norm = given[f"{ARGS}.max_grad_norm"]
    native.set("train.clip_norm", 1.0 if norm is None else norm or None, f"{ARGS}.max_grad_norm")
    precision(given, native, {f"{ARGS}.bf16": "bf16", f"{ARGS}.fp16": "fp16"})
    if given[f"{ARGS}.torch_compile"] is not None:
        native.set("train.compile", given[f"{ARGS}.torch_compile"], f"{ARGS}.torch_compile")
    if given[f"{ARGS}.use_cpu"]:
        native.set("train.device", "cpu", f"{ARGS}.use_cpu")
    if given[f"{ARGS}.label_smoothing_factor"]:
        native.set("loss.label_smoothing", given[f"{ARGS}.label_smoothing_factor"], f"{ARGS}.label_smoothing_factor")
    length(given, native, epochs=f"{ARGS}.num_train_epochs", steps=f"{ARGS}.max_steps")
    if native.get("train.epochs") is not None:
        _or(given, native, "train.epochs", "num_train_epochs", 3.0)
    _or(given, native, "train.log_every", "logging_steps", 500)
    _huggingface_periods(given, native)


def _or(given: DialectFile, native: NativeBuilder, path: str, leaf: str, default: Any) -> None:
    """Set ``path`` to the argument ``leaf``, to the Trainer's own default where the file lacks it."""
    key = f"{ARGS}.{leaf}"
    native.set(path, given[key] if given.has(key) else default, key)


def _huggingface_schedule(given: DialectFile, native: NativeBuilder) -> None:
    name, ratio, steps = (f"{ARGS}.{leaf}" for leaf in ("lr_scheduler_type", "warmup_ratio", "warmup_steps"))
    native.set("schedule.kind", "transformers", name)
    native.set("schedule.name", given[name] or "linear", name)
    if given[steps]:
        native.set("schedule.warmup_steps", given[steps], steps)
    elif given[ratio]:
        native.set("schedule.warmup_steps", given[ratio], ratio)
    parameters = f"{ARGS}.lr_scheduler_kwargs"
    if given[parameters]:
        native.set("schedule.arguments", given[parameters], parameters)


def _huggingface_periods(given: DialectFile, native: NativeBuilder) -> None:
    """When to validate and when to save: by steps, by epochs, or not at all."""
    strategy, steps = given[f"{ARGS}.eval_strategy"] or "no", f"{ARGS}.eval_steps"
    every: Any = None
    said = f"{ARGS}.eval_strategy"
    if strategy == "steps" and not given[f"{ARGS}.do_eval"]:
        said = f"{ARGS}.do_eval"
    elif strategy == "steps" and given.has(steps):
        every, said = period(given, steps), steps
    elif strategy == "steps":
        every, said = native.get("train.log_every"), f"{ARGS}.logging_steps"
    elif strategy == "epoch":
        every = _of_the_run(given, native, 1.0, said)
    native.set("evaluate.every", every, said)
    native.set("evaluate.at_end", given[f"{ARGS}.do_final_eval"], f"{ARGS}.do_final_eval")
    native.set("evaluate.at_start", bool(given[f"{ARGS}.eval_on_start"]), f"{ARGS}.eval_on_start")
    batches, batch = given[f"{ARGS}.eval_max_steps"], native.get("evaluate.batch_size")
    evaluation_size(given, native, f"{ARGS}.eval_max_steps", None if batches is None else batches * batch)
    saving = given[f"{ARGS}.save_strategy"] or "steps"
    by_steps = period(given, f"{ARGS}.save_steps") if saving == "steps" else None
    native.set("checkpoint.every", by_steps, f"{ARGS}.save_steps" if saving == "steps" else f"{ARGS}.save_strategy")
    if saving == "epoch":
        native.set("checkpoint.every_epochs", 1.0, f"{ARGS}.save_strategy")
    last = f"{ARGS}.save_final_checkpoint"
    native.set("checkpoint.at_end", given[last] if given.has(last) else saving != "no", last)
    native.set("checkpoint.keep", given[f"{ARGS}.save_total_limit"], f"{ARGS}.save_total_limit")


def _of_the_run(given: DialectFile, native: NativeBuilder, epochs: float, key: str) -> float | None:
    """``epochs`` as a fraction of the run, which must be counted in epochs itself."""
    run = native.get("train.epochs")
    if run is None or native.get("train.steps") is not None:
        given.refuse(key, "counts epochs, and the run is as long as max_steps says; give a number of steps")
        return None
    return fraction_of(epochs, run)


def lightning_rules(given: DialectFile, native: NativeBuilder) -> None:
    """A run in the Trainer of Lightning; its arguments become our keys where there are such."""
    if given[f"{ARGS}.strategy.type"] in (None, "auto"):
        _hand_on(given, native, "lightning")
    _lightning_strategy(given, native)
    micro, passes = f"{ARGS}.train_micro_batch_size_per_gpu", f"{PL}.accumulate_grad_batches"
    native.set("train.micro_batch_size", given[micro] or 1, micro)
    native.set("train.accumulation", given[passes] or 1, passes)
    batch_of_each(native, micro, passes)
    native.set("train.clip_norm", given[f"{PL}.gradient_clip_val"] or None, f"{PL}.gradient_clip_val")
    named = given[f"{PL}.precision"]
    if named is not None:
        native.set("train.precision", named, f"{PL}.precision")
    else:
        precision(given, native, {})
    native.set("train.device", given[f"{PL}.accelerator"] or "auto", f"{PL}.accelerator")
    native.set("train.log_every", given[f"{PL}.log_every_n_steps"] or 50, f"{PL}.log_every_n_steps")
    _lightning_length(given, native)
    _lightning_optimizer(given, native)
    _lightning_schedule(given, native)
    native.set("checkpoint.every", period(given, f"{ARGS}.save_steps"), f"{ARGS}.save_steps")
    native.set("checkpoint.at_end", given[f"{ARGS}.save_final_checkpoint"], f"{ARGS}.save_final_checkpoint")
    _lightning_evaluation(given, native)


def _lightning_strategy(given: DialectFile, native: NativeBuilder) -> None:
    """How devices share the work; with a strategy our own loop trains, since Lightning's takes its steps in one."""
    section = f"{ARGS}.strategy"
    kind, offload = f"{section}.type", f"{section}.fsdp_cpu_offload"
    spread = STRATEGIES[given[kind] or "auto"]
    if spread:
        native.set("parallel", dict(spread), kind)
        if given.has(ARGUMENTS):
            given.refuse(ARGUMENTS, f"is for Lightning's loop, and with {kind}: {given[kind]} ours trains")
    sharded = spread.get("kind") == "fsdp"
    for key in (offload, f"{section}.fsdp_compile"):
        if given[key] and not sharded:
            native.say(f"{key}: not used, for it belongs to strategy.type: dctp")
    if given[offload] and sharded:
        native.set("parallel.offload", True, offload)
    if given[f"{section}.fsdp_compile"] and sharded:
        native.set("train.compile", True, f"{section}.fsdp_compile")
    if given[f"{section}.activation_checkpointing"]:
        native.set("train.activation_checkpointing", 1, f"{section}.activation_checkpointing")


def _lightning_length(given: DialectFile, native: NativeBuilder) -> None:
    """Steps and epochs, of which the first to end ends the run; 1000 epochs where neither is given, as in Lightning."""
    steps, epochs = f"{PL}.max_steps", f"{PL}.max_epochs"
    if given[steps] == 0:
        given.refuse(steps, "0 trains nothing; give a number of steps, or -1 for whole epochs")
    bounded = given[steps] is not None and given[steps] > 0
    if bounded:
        native.set("train.steps", given[steps], steps)
    if given[epochs] is not None and given[epochs] > 0:
        native.set("train.epochs", given[epochs], epochs)
    elif not bounded:
        if given[epochs] is not None:
            given.refuse(epochs, f"{given[epochs]} ends never; give max_steps, or a number of epochs")
        native.set("train.epochs", 1000, epochs)


def _lightning_optimizer(given: DialectFile, native: NativeBuilder) -> None:
    section = f"{MODULE}.optimizer"
    name = given[f"{section}.type"] or "adamw"
    if name != "adamw" and name not in TORCH:
        known = ", ".join(("adamw", *TORCH))
        given.refuse(f"{section}.type", f"{name!r} is none of those that there are here: {known}")
        return
    # Every class has its own default; 1e-3 is that of most.
    defaults = {**ADAMW, "weight_decay": 0.01 if name == "adamw" else 0.0}
    optimizer(given, native, f"{section}.params", TORCH.get(name), (f"{section}.type",), defaults)


def _lightning_schedule(given: DialectFile, native: NativeBuilder) -> None:
    kind, params = f"{MODULE}.scheduler.type", f"{MODULE}.scheduler.params"
    name = given[kind]
    if name is None:
        native.set("schedule", {"kind": "constant"}, kind)
        return
    if name not in TORCH_SCHEDULES and name not in OWN_SCHEDULES:
        known = ", ".join((*TORCH_SCHEDULES, *OWN_SCHEDULES))
        given.refuse(kind, f"{name!r} is none of those that there are here: {known}")
        return
    native.set("schedule.kind", "torch" if name in TORCH_SCHEDULES else "deepspeed", kind)
    native.set("schedule.name", TORCH_SCHEDULES.get(name) or OWN_SCHEDULES[name], kind)
    native.set("schedule.arguments", dict(given[params] or {}), params)


def _lightning_evaluation(given: DialectFile, native: NativeBuilder) -> None:
    """Validation: every so many passes, or after a part of an epoch, or after whole ones."""
    interval, epochs, limit = (
        f"{PL}.{leaf}" for leaf in ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")
    )
    found, micro = given[interval], native.get("train.micro_batch_size")
    passes = native.get("train.accumulation")
    every, said = None, interval if given.has(interval) else epochs
    at_end = given[f"{ARGS}.do_final_eval"]
    if not given[f"{ARGS}.do_eval"]:
        said = f"{ARGS}.do_eval"
    elif given[limit] == 0:
        said = limit
    elif not native.get("data.validation_sources"):
        pass
    elif isinstance(found, int):
        if found % passes:
            given.refuse(interval, f"{found} passes are no whole number of steps of {passes}; give a multiple")
        every = max(1, found // passes)
    elif native.get("train.steps") is None or given.has(interval) or given.has(epochs):
        part = found if found is not None else float(given[epochs] or 1)
        every = _of_the_run(given, native, part, said)
    else:
        at_end = True
        native.say(f"{interval}: is not given, and the run is counted in steps: validation is after the last one")
    native.set("evaluate.every", every, said)
    native.set("evaluate.at_end", at_end, f"{ARGS}.do_final_eval")
    samples = given[limit] * micro if isinstance(given[limit], int) and given[limit] else None
    evaluation_size(given, native, limit, samples)


def _hand_on(given: DialectFile, native: NativeBuilder, kind: str) -> None:
    """The trainer, and the arguments that are its own, each with its line."""
    native.set("trainer.kind", kind, "trainer")
    for name, value in (given[ARGUMENTS] or {}).items():
        native.set(f"trainer.arguments.{name}", value, ARGUMENTS)
        place = place_of((*path_of(ARGUMENTS), name), given.document.places)
        section = PL if kind == "lightning" else ARGS
        native.places[("trainer", "arguments", name)] = Origin(place.file, place.line, f"{section}.{name}")
