"""What PhyAGI's trainers have in common: defaults, the run's folder, precision, length, batch and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.arguments import ARGS, OptimizerParams
from quintet.config.dialects.phyagi.schema import File
from quintet.config.keypath import is_sequence
from quintet.config.names import local_path

BUILT_IN: dict[str, dict[str, Any]] = {
    "optimizer": {
        "kind": "adamw",
        "lr": 1.8e-3,
        "betas": [0.9, 0.95],
        "eps": 1e-7,
        "weight_decay": 0.0,
        "decay": "all",
    },
    "schedule": {
        "kind": "deepspeed",
        "name": "WarmupDecayLR",
        "arguments": {"warmup_min_lr": 0.0, "warmup_max_lr": 1.8e-3, "warmup_type": "linear"},
    },
}
"""PhyAGI's own configuration of DeepSpeed, for a file that has none; it has batches of 1024 in passes of 4."""
ZERO_ALONE = ("fp16", "bf16", "data_types", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")
"""Settings of a ds_config that are handed to DeepSpeed beside zero_optimization and those that native keys say."""
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
"""Defaults of DeepSpeed's AdamW."""
TORCH = {name.lower(): name for name in ("Adadelta", "Adagrad", "Adamax", "ASGD", "RMSprop", "Rprop", "SGD")}
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


def set_folder(theirs: File, native: NativeBuilder) -> None:
    """The run's folder; where the file has an output_root, a relative one lies in it."""
    folder, root = local_path(theirs.output_dir), local_path(theirs.output_root)
    if native.has("output_root") and not folder.is_relative_to(root):
        folder = root / folder
    native.set("runs_dir", str(folder.parent), "output_dir", "output_root")
    native.set("name", folder.name or "run", "output_dir")


def set_defaults(native: NativeBuilder, defaults: Mapping[str, Any]) -> None:
    """Set what the trainer itself has for keys that the file lacks."""
    for path, value in defaults.items():
        if not native.has(path):
            native.set(native.given.dialect.key(path).role.to, value, path)


def set_precision(
    theirs: File, native: NativeBuilder, flags: Mapping[str, bool | None], *, automatic: bool = False
) -> None:
    """Numbers of the matrix products: what one of ``flags`` says, else the model's torch_dtype, else fp32."""
    on = [key for key, value in flags.items() if value]
    if len(on) > 1:
        native.refuse(on[1], f"cannot be on together with {on[0]}; set one of the two to false")
    if on:
        native.set("train.precision", "bf16" if "bf16" in on[0] else "fp16", on[0])
    elif theirs.model.torch_dtype is not None:
        native.set("train.precision", theirs.model.torch_dtype, "model.torch_dtype")
    else:
        native.set("train.precision", "auto" if automatic else "fp32", *flags)


def set_length(theirs: File, native: NativeBuilder) -> None:
    """Steps where they are given, else epochs."""
    args = theirs.training_args
    if args.max_steps < 0:
        native.set("train.epochs", args.num_train_epochs, f"{ARGS}.num_train_epochs")
        return
    refuse_no_steps(native, f"{ARGS}.max_steps", args.max_steps)
    native.set("train.steps", args.max_steps, f"{ARGS}.max_steps")


def refuse_no_steps(native: NativeBuilder, key: str, steps: int | None) -> None:
    if steps == 0:
        native.refuse(key, "0 trains nothing; give a number of steps, or -1 for whole epochs")


def set_batch_of_each(native: NativeBuilder, *keys: str) -> None:
    """Passes × samples are what each device does of a step, as ``keys`` say."""
    samples = native.get("train.micro_batch_size") * native.get("train.accumulation")
    native.set("train.batch_size_per_device", samples, *keys)


def set_evaluation_size(theirs: File, native: NativeBuilder, key: str, samples: int | None) -> None:
    """Validate on ``samples`` of each dataset, all when None; datasets that are joined count as one."""
    native.set("evaluate.samples", samples, key)
    if samples is not None and theirs.eval_dataset_concat is None:
        native.set("evaluate.samples_each", True, key)


def set_optimizer(
    native: NativeBuilder,
    section: str,
    params: OptimizerParams,
    name: str | None,
    said: tuple[str, ...],
    weight_decay: float = 0.0,
) -> None:
    """AdamW where ``name`` is None, else that class of torch.optim, with ``params``, which stand in ``section``; the
    keys ``said`` say which."""
    native.set("optimizer.kind", "adamw" if name is None else "torch", *said)
    native.set("optimizer.decay", "all")
    own = ("lr", "betas", "eps", "weight_decay")
    if name is not None:
        native.set("optimizer.name", name, *said)
        native.set("optimizer.arguments", {}, *said)
        own = ("lr", "weight_decay")
    for leaf in own:
        given = getattr(params, leaf)
        value = {**ADAMW, "weight_decay": weight_decay}[leaf] if given is None else given
        native.set(f"optimizer.{leaf}", list(value) if is_sequence(value) else value, f"{section}.{leaf}")
    for key in native.within(section):
        leaf = key.removeprefix(f"{section}.")
        if leaf in (*own, "adam_w_mode", "torch_adam"):
            continue
        value = getattr(params, leaf)
        if name is None:
            native.refuse(key, "is no parameter of AdamW; leave it out")
        else:
            native.set(f"optimizer.arguments.{leaf}", list(value) if is_sequence(value) else value, key)
