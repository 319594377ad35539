"""What PhyAGI's training arguments are here: those common to its trainers, and those of its own around DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.hf_lightning import huggingface_rules, lightning_rules
from quintet.config.dialects.phyagi.other_keys import ARGUMENTS, HUGGINGFACE, LIGHTNING
from quintet.config.dialects.phyagi.parts import ADAMW, evaluation_size, length, optimizer, period, precision
from quintet.config.dialects.phyagi.shape import trainer_of
from quintet.config.dialects.phyagi.training_keys import ARGS, DEEPSPEED, DS, ZERO_ALONE
from quintet.config.names import local_path

BUILT_IN: dict[str, Any] = {
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
"""PhyAGI's own configuration of DeepSpeed, for a file that has none."""

BATCH = 1024


def training_rules(given: DialectFile, native: NativeBuilder) -> None:
    """All of training, by the trainer that the file is for."""
    trainer = trainer_of(given.document.values)
    _refuse_others(given, trainer)
    _folder(given, native)
    _track(given, native)
    native.set("sample.prompts", [])
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    rules: dict[str, Callable[[DialectFile, NativeBuilder], None]] = {
        "deepspeed": _deepspeed,
        "huggingface": huggingface_rules,
        "lightning": lightning_rules,
    }
    rules[trainer](given, native)
    _waiting(given, native)
    _no_validation(native)


def _refuse_others(given: DialectFile, trainer: str) -> None:
    """Refuse the arguments of another trainer than the file's."""
    shared = {"train_micro_batch_size_per_gpu"} if trainer == "deepspeed" else set()
    owned = {"deepspeed": DEEPSPEED, "huggingface": HUGGINGFACE, "lightning": LIGHTNING}
    for owner, keys in owned.items():
        for key in keys if owner != trainer else ():
            if given.has(key.path) and key.name not in shared:
                given.refuse(key.path, f"is for trainer: {owner}, and this file is for {trainer}; leave it out")
    if trainer == "deepspeed" and given.has(ARGUMENTS):
        given.refuse(ARGUMENTS, "is for trainer: huggingface or lightning; leave it out")


def _folder(given: DialectFile, native: NativeBuilder) -> None:
    """The run's folder; where the file has an output_root, a relative one lies in it."""
    folder = local_path(given["output_dir"])
    if given.has("output_root"):
        root = local_path(given["output_root"])
        folder = folder if folder.is_relative_to(root) else root / folder
    native.set("runs_dir", str(folder.parent), "output_dir", "output_root")
    native.set("name", folder.name or "run", "output_dir")


def _track(given: DialectFile, native: NativeBuilder) -> None:
    entries: list[dict[str, Any]] = []
    for kind in ("mlflow", "wandb", "tensorboard"):
        if given[f"{ARGS}.{kind}"]:
            host = given[f"{ARGS}.wandb_host"] if kind == "wandb" else None
            entries.append({"kind": kind, **({"arguments": {"settings": {"base_url": host}}} if host else {})})
    if entries:
        native.set("track", entries, *(f"{ARGS}.{entry['kind']}" for entry in entries))


def _no_validation(native: NativeBuilder) -> None:
    """Nothing is validated where nothing is held out."""
    if not native.get("data.validation_sources"):
        native.set("evaluate.every", None)
        native.set("evaluate.at_end", False)


def _waiting(given: DialectFile, native: NativeBuilder) -> None:
    key = f"{ARGS}.timeout"
    if given[key] is not None:
        native.set("parallel.timeout_seconds", float(given[key]), key)


def _parallel(given: DialectFile, native: NativeBuilder) -> None:
    """DeepSpeed's engine for a stage of ZeRO, with what the file says of it; stage 0 is what every strategy does."""
    section, stage = f"{DS}.zero_optimization", f"{DS}.zero_optimization.stage"
    beside = [key for name in ZERO_ALONE for key in given.within(f"{DS}.{name}") if not key.endswith(".enabled")]
    keys = [*given.within(section), *beside]
    if not given[stage]:
        for key in keys:
            if key != stage:
                native.say(f"{key}: not used, for the stage of ZeRO is 0, and PyTorch alone takes the steps")
        return
    native.set("parallel.kind", "deepspeed", stage)
    for key in keys:
        native.set(f"parallel.config.{key.removeprefix(f'{DS}.')}", given[key], key)
    for name in ("fp16", "bf16"):
        if given.has(f"{DS}.{name}.enabled"):
            native.set(f"parallel.config.{name}.enabled", given[f"{DS}.{name}.enabled"], f"{DS}.{name}.enabled")


def _deepspeed(given: DialectFile, native: NativeBuilder) -> None:
    _parallel(given, native)
    precision(
        given, native, {f"{DS}.fp16.enabled": "fp16", f"{DS}.bf16.enabled": "bf16"}, automatic=not _has_config(given)
    )
    _optimizer(given, native)
    _schedule(given, native)
    batch, micro = f"{DS}.train_batch_size", f"{DS}.train_micro_batch_size_per_gpu"
    accumulation = f"{DS}.gradient_accumulation_steps"
    own = f"{ARGS}.train_micro_batch_size_per_gpu"
    if given.has(own):
        given.refuse(own, f"stands in ds_config for trainer: deepspeed, as {micro}")
    _batch(given, native, batch, micro, accumulation)
    clipping = f"{DS}.gradient_clipping"
    native.set("train.clip_norm", given[clipping] or None, clipping)
    length(given, native, epochs=f"{ARGS}.num_train_epochs", steps=f"{ARGS}.max_steps")
    native.set("train.log_every", given[f"{ARGS}.logging_steps"], f"{ARGS}.logging_steps")
    native.set("checkpoint.every", period(given, f"{ARGS}.save_steps"), f"{ARGS}.save_steps")
    native.set("checkpoint.at_end", given[f"{ARGS}.save_final_checkpoint"], f"{ARGS}.save_final_checkpoint")
    _evaluation(given, native)


def _batch(given: DialectFile, native: NativeBuilder, batch: str, micro: str, accumulation: str) -> None:
    """DeepSpeed's train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × devices, of which
    two say the third: the devices where all are given."""
    whole, size, passes = given[batch], given[micro], given[accumulation]
    if not _has_config(given):
        whole, size = BATCH, 4
    elif whole is None and size is None:
        given.refuse(micro, "must be given, or train_batch_size: DeepSpeed takes the batch of a step from them")
        return
    if whole is None:
        native.set("train.batch_size_per_device", size * (passes or 1), micro, accumulation)
    else:
        native.set("train.batch_size", whole, batch)
    if size is not None:
        native.set("train.micro_batch_size", size, micro)
    if passes is None:
        return
    devices, rest = divmod(whole, (size or 1) * passes) if whole is not None else (1, 0)
    if rest:
        given.refuse(batch, f"{whole} samples are no whole number of devices with {passes} passes of {size or 1}")
    elif devices > 1 and size is not None:
        native.say(
            f"{accumulation}: with {passes} passes of {size} samples {whole} are those of {devices} devices; "
            "on fewer or more it stays, and the passes follow"
        )
    else:
        native.set("train.accumulation", passes, accumulation)


def _has_config(given: DialectFile) -> bool:
    return bool(given.within(DS))


def _optimizer(given: DialectFile, native: NativeBuilder) -> None:
    section = f"{DS}.optimizer"
    if not _has_config(given):
        native.set("optimizer", dict(BUILT_IN["optimizer"]), "training_args.ds_config.optimizer.type")
        return
    kind, adam_w = given[f"{section}.type"] or "AdamW", given[f"{section}.params.adam_w_mode"] is not False
    decoupled = kind.lower() in ("adamw", "adam") and adam_w
    name = "Adam" if kind.lower() == "adamw" and not adam_w else kind
    said = (f"{section}.type", *([f"{section}.params.adam_w_mode"] if kind.lower() in ("adamw", "adam") else []))
    optimizer(given, native, f"{section}.params", None if decoupled else name, said, ADAMW)


def _schedule(given: DialectFile, native: NativeBuilder) -> None:
    kind, params = f"{DS}.scheduler.type", f"{DS}.scheduler.params"
    if not _has_config(given):
        native.set("schedule", dict(BUILT_IN["schedule"]), kind)
    elif given[kind] is None:
        if given[params]:
            given.refuse(params, "says parameters of no schedule; give scheduler.type")
        native.set("schedule", {"kind": "constant"}, kind)
    else:
        native.set("schedule.kind", "deepspeed", kind)
        native.set("schedule.name", given[kind], kind)
        native.set("schedule.arguments", dict(given[params] or {}), params)


def _evaluation(given: DialectFile, native: NativeBuilder) -> None:
    doing = given[f"{ARGS}.do_eval"]
    every = period(given, f"{ARGS}.eval_steps") if doing else None
    native.set("evaluate.every", every, f"{ARGS}.eval_steps" if doing else f"{ARGS}.do_eval")
    native.set("evaluate.at_end", doing and given[f"{ARGS}.do_final_eval"], f"{ARGS}.do_final_eval")
    batches = given[f"{ARGS}.eval_max_steps"]
    samples = native.get("train.batch_size") or native.get("train.batch_size_per_device", 1)
    evaluation_size(given, native, f"{ARGS}.eval_max_steps", None if batches is None else batches * samples)
