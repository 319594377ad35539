"""Rules for keys of VectorLM that depend on each other, other than those of the data."""

import importlib.util
from pathlib import PurePath

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.vectorlm.back import back
from quintet.config.dialects.vectorlm.schema import DATA, LORA, PLATEAU, STRATEGIES, TRAIN, File
from quintet.config.dialects.vectorlm.translate_data import data_rules

_PEFT_DEFAULTS = {"model.lora.rank": 8, "model.lora.alpha": 8.0}


def _rules(theirs: File, native: NativeBuilder) -> None:
    _model(theirs, native)
    _adapters(theirs, native)
    native.set("optimizer.kind", "torch")
    native.set("optimizer.name", "AdamW")
    native.set("optimizer.decay", "all")
    _schedule(theirs, native)
    _training(theirs, native)
    _checkpoints(theirs, native)
    _folder(theirs, native)
    data_rules(theirs, native)


def _model(theirs: File, native: NativeBuilder) -> None:
    native.set("model.kind", "huggingface", "model")
    native.set("tokenizer", {"kind": "huggingface", "path": theirs.model}, "model")
    key = f"{TRAIN}.use_flash_attention"
    if not theirs.train_parameters.use_flash_attention:
        return
    if theirs.train_parameters.use_mp != "bf16":
        native.refuse(key, "FlashAttention computes only in bf16; set use_mp: true, or this to false")
    installed = importlib.util.find_spec("flash_attn") is not None
    native.set("model.attention_backend", "flash_attention_2" if installed else "sdpa", key)
    if not installed:
        native.say(f"{key}: flash_attn is not installed, so PyTorch's own kernel (sdpa) computes the same attention")


def _adapters(theirs: File, native: NativeBuilder) -> None:
    keys = native.within(LORA)
    if not keys:
        return
    for path, default in _PEFT_DEFAULTS.items():
        if native.get(path) is None:
            native.set(path, default, *keys)
    targets = theirs.train_parameters.lora_peft_config.target_modules
    if targets is None:
        native.set("model.lora.targets", None, *keys)
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
        native.set("model.lora.targets", names, f"{LORA}.target_modules")


def _schedule(theirs: File, native: NativeBuilder) -> None:
    key, ratio = f"{TRAIN}.lr_scheduler_type", f"{TRAIN}.warmup_ratio"
    name, warmup = theirs.train_parameters.lr_scheduler_type, theirs.train_parameters.warmup_ratio
    plateau = name in (PLATEAU, "reduce_lr_on_plateau")
    if name == "greedy":
        native.refuse(key, "greedy follows the loss of each step, which no schedule of Quintet does; choose another")
    if name in ("constant", "reduce_lr_on_plateau") and warmup:
        other = PLATEAU if plateau else "constant_with_warmup"
        native.say(f"{ratio}: not used, because {name} has no warm-up; {other} has one")
        warmup = 0.0
    native.set("schedule.kind", "plateau" if plateau else "transformers", key)
    if not plateau:
        native.set("schedule.name", name, key)
    native.set("schedule.warmup_steps", warmup or 0, ratio)
    _schedule_arguments(theirs, native, name)


def _schedule_arguments(theirs: File, native: NativeBuilder, name: str) -> None:
    """Set the arguments of a schedule of transformers other than the warm-up."""
    lowest, others = f"{TRAIN}.min_lr", f"{TRAIN}.lr_scheduler_kwargs"
    arguments, has_min_lr = dict(theirs.train_parameters.lr_scheduler_kwargs or {}), name.endswith("with_min_lr")
    if native.has(lowest) and not has_min_lr:
        native.refuse(lowest, f"belongs to cosine_with_min_lr and cosine_warmup_with_min_lr, and not to {name}")
    elif native.has(lowest):
        arguments["min_lr"] = theirs.train_parameters.min_lr
    elif has_min_lr and arguments.keys().isdisjoint(("min_lr", "min_lr_rate")):
        arguments["min_lr"] = 0.0
        native.say(f"{TRAIN}.lr_scheduler_type: {name} without min_lr ends at 0; {lowest} sets another end")
    if arguments and native.get("schedule.kind") == "transformers":
        native.set("schedule.arguments", arguments, lowest, others, f"{TRAIN}.lr_scheduler_type")


def _training(theirs: File, native: NativeBuilder) -> None:
    """Set devices, batch, evaluation and trackers."""
    train, passes = theirs.train_parameters, theirs.train_parameters.gradient_accumulation_steps
    passes_key, logging = f"{TRAIN}.gradient_accumulation_steps", f"{TRAIN}.logging_steps"
    if train.sharding_strategy is not None:
        native.set("parallel", dict(STRATEGIES[train.sharding_strategy]), f"{TRAIN}.sharding_strategy")
    native.set("train.clip_norm", train.max_grad_norm, f"{TRAIN}.max_grad_norm")
    native.set("train.batch_size_per_device", theirs.dataset.train_bs * passes, f"{DATA}.train_bs", passes_key)
    every = max(1, (2 * train.logging_steps + passes) // (2 * passes))  # to the nearest, halves up
    native.set("evaluate.every", every, logging, passes_key)
    if every * passes != train.logging_steps:
        native.say(
            f"{logging}: {train.logging_steps} micro-batches are not a multiple of the {passes} of a step; evaluated "
            f"every {every} steps"
        )
    native.set("evaluate.samples", None)
    native.set("sample.prompts", [])
    if theirs.enable_wandb_logging:
        tracker = {"kind": "wandb", "arguments": theirs.wandb_config or {}}
        native.set("track", [tracker], "wandb_config", "enable_wandb_logging")


def _checkpoints(theirs: File, native: NativeBuilder) -> None:
    train, frequency = theirs.train_parameters, f"{TRAIN}.save_frequency"
    native.set("checkpoint.every", None)
    if not train.checkpointing_enabled:
        native.set("checkpoint.every_epochs", None, f"{TRAIN}.checkpointing_enabled")
    elif train.save_frequency is None:
        native.refuse(frequency, "is missing; give it, or checkpointing_enabled: false")
    else:
        native.set("checkpoint.every_epochs", train.save_frequency, frequency)
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)


def _folder(theirs: File, native: NativeBuilder) -> None:
    key, folder = f"{TRAIN}.output_dir", PurePath(theirs.train_parameters.output_dir)
    if folder.name in ("", ".."):
        native.refuse(key, "must end with a name, such as runs/mine")
        return
    native.set("runs_dir", str(folder.parent), key)
    native.set("name", folder.name, key)


DIALECT = Dialect(
    "vectorlm",
    "VectorLM",
    schema=File,
    rules=_rules,
    back=back,
    writes=lambda config, key: True,
    stand_in={
        "model": "missing",
        "train_parameters.output_dir": "missing",
        "train_parameters.logging_steps": 1,
        "dataset.train_bs": 1,
        "train_parameters.epochs": 1,
        "train_parameters.lr_scheduler_type": "constant",
        "dataset.train_ds": "missing",
        "dataset.eval_ds": "missing",
    },
)
