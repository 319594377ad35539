"""What several keys of VectorLM say together about a run."""

from __future__ import annotations

import importlib.util
from pathlib import PurePath

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.vectorlm.data import data_rules
from quintet.config.dialects.vectorlm.keys import DATA, LORA, PLATEAU, STRATEGIES, TRAIN

# peft.LoraConfig's own defaults.
_RANK, _ALPHA = 8, 8.0


def rules(given: DialectFile, native: NativeBuilder) -> None:
    """Everything that a key alone does not say."""
    _model(given, native)
    _adapters(given, native)
    native.set("optimizer.kind", "torch")
    native.set("optimizer.name", "AdamW")
    native.set("optimizer.decay", "all")
    _schedule(given, native)
    _training(given, native)
    _folder(given, native)
    data_rules(given, native)


def _model(given: DialectFile, native: NativeBuilder) -> None:
    native.set("model.kind", "huggingface", "model")
    native.set("tokenizer", {"kind": "huggingface", "path": given["model"]}, "model")
    flash, key = given[f"{TRAIN}.use_flash_attention"], f"{TRAIN}.use_flash_attention"
    if not flash:
        return
    if given[f"{TRAIN}.use_mp"] != "bf16":
        given.refuse(key, "FlashAttention computes in bf16 only; set use_mp: true, or this to false")
    installed = importlib.util.find_spec("flash_attn") is not None
    native.set("model.attention_backend", "flash_attention_2" if installed else "sdpa", key)
    if not installed:
        native.say(f"{key}: flash_attn is not installed, so PyTorch's own kernel (sdpa) computes the same attention")


def _adapters(given: DialectFile, native: NativeBuilder) -> None:
    keys = given.within(LORA)
    if not keys:
        return
    for name, default in (("rank", _RANK), ("alpha", _ALPHA)):
        if native.get(f"model.lora.{name}") is None:
            native.set(f"model.lora.{name}", default, *keys)
    targets = given[f"{LORA}.target_modules"]
    names = [targets] if isinstance(targets, str) else targets
    native.set("model.lora.targets", names, *([f"{LORA}.target_modules"] if names else keys))


def _schedule(given: DialectFile, native: NativeBuilder) -> None:
    key, ratio = f"{TRAIN}.lr_scheduler_type", f"{TRAIN}.warmup_ratio"
    name, warmup = given[key], given[ratio]
    plateau = name in (PLATEAU, "reduce_lr_on_plateau")
    if name == "greedy":
        given.refuse(key, "greedy follows the loss of every step, which Quintet has no schedule for; take another")
    if name in ("constant", "reduce_lr_on_plateau") and warmup:
        other = PLATEAU if plateau else "constant_with_warmup"
        native.say(f"{ratio}: {name} has no warm-up, so it is not used; {other} has one")
        warmup = 0.0
    native.set("schedule.kind", "plateau" if plateau else "transformers", key)
    if not plateau:
        native.set("schedule.name", name, key)
    native.set("schedule.warmup_steps", warmup or 0, ratio)
    _schedule_arguments(given, native, name)


def _schedule_arguments(given: DialectFile, native: NativeBuilder, name: str) -> None:
    """What transformers asks of a schedule beside the warm-up."""
    lowest, others = f"{TRAIN}.min_lr", f"{TRAIN}.lr_scheduler_kwargs"
    arguments, floored = dict(given[others] or {}), name.endswith("with_min_lr")
    if given.has(lowest) and not floored:
        given.refuse(lowest, f"belongs to cosine_with_min_lr and cosine_warmup_with_min_lr, and {name} has none")
    elif given.has(lowest):
        arguments["min_lr"] = given[lowest]
    elif floored and arguments.keys().isdisjoint(("min_lr", "min_lr_rate")):
        arguments["min_lr"] = 0.0
        native.say(f"{TRAIN}.lr_scheduler_type: {name} without min_lr ends at 0; {lowest} sets another")
    if arguments and native.get("schedule.kind") == "transformers":
        native.set("schedule.arguments", arguments, lowest, others, f"{TRAIN}.lr_scheduler_type")


def _training(given: DialectFile, native: NativeBuilder) -> None:
    sharding = f"{TRAIN}.sharding_strategy"
    if given.has(sharding):
        native.set("parallel", dict(STRATEGIES[given[sharding]]), sharding)
    native.set("train.clip_norm", given[f"{TRAIN}.max_grad_norm"], f"{TRAIN}.max_grad_norm")
    micro_batches, passes = given[f"{TRAIN}.logging_steps"], given[f"{TRAIN}.gradient_accumulation_steps"]
    size = f"{DATA}.train_bs"
    native.set("train.batch_size_per_device", given[size] * passes, size, f"{TRAIN}.gradient_accumulation_steps")
    every = max(1, (2 * micro_batches + passes) // (2 * passes))  # to the nearest, halves up
    native.set("evaluate.every", every, f"{TRAIN}.logging_steps", f"{TRAIN}.gradient_accumulation_steps")
    if every * passes != micro_batches:
        native.say(
            f"{TRAIN}.logging_steps: {micro_batches} micro-batches are no whole number of steps of {passes}; evaluated "
            f"after every {every} steps"
        )
    native.set("evaluate.samples", None)
    native.set("sample.prompts", [])
    frequency = given[f"{TRAIN}.save_frequency"]
    if frequency == 0:
        given.refuse(f"{TRAIN}.save_frequency", "must be above 0; checkpointing_enabled: false keeps only the last")
    saving = given[f"{TRAIN}.checkpointing_enabled"]
    if saving and frequency is None:
        given.refuse(f"{TRAIN}.save_frequency", "is missing; give it, or checkpointing_enabled: false")
    native.set("checkpoint.every", None)
    native.set(
        "checkpoint.every_epochs",
        frequency if saving else None,
        f"{TRAIN}.save_frequency" if saving else f"{TRAIN}.checkpointing_enabled",
    )
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    if given["enable_wandb_logging"]:
        arguments = given["wandb_config"] or {}
        native.set("track", [{"kind": "wandb", "arguments": arguments}], "wandb_config", "enable_wandb_logging")


def _folder(given: DialectFile, native: NativeBuilder) -> None:
    key = f"{TRAIN}.output_dir"
    folder = PurePath(given[key])
    if folder.name in ("", ".."):
        given.refuse(key, "must end with a name, such as runs/mine")
        return
    native.set("runs_dir", str(folder.parent), key)
    native.set("name", folder.name, key)
