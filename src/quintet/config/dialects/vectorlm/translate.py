"""Rules for keys of VectorLM that depend on each other, and the way back."""

from __future__ import annotations

import importlib.util
from pathlib import PurePath

from quintet.config.data import DataConfig
from quintet.config.describe import section_of
from quintet.config.dialects.dialect import Dialect, Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.vectorlm.data import DATA, RAW, TRAIN, data_rules, splits_of
from quintet.config.dialects.vectorlm.schema import PLATEAU, STRATEGIES, File, Optimizer
from quintet.config.documents import ConditionalField, TextField, TokenField
from quintet.config.model import HuggingFaceConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.packing import ChunkPackingConfig, DocumentPackingConfig
from quintet.config.schedule import PlateauConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource

LORA = f"{TRAIN}.lora_peft_config"
_RANK, _ALPHA = 8, 8.0  # peft.LoraConfig's own defaults


def _rules(theirs: File, native: NativeBuilder) -> None:
    """Everything that a key alone does not say."""
    _model(theirs, native)
    _adapters(theirs, native)
    native.set("optimizer.kind", "torch")
    native.set("optimizer.name", "AdamW")
    native.set("optimizer.decay", "all")
    _schedule(theirs, native)
    _training(theirs, native)
    _folder(theirs, native)
    data_rules(theirs, native)


def _model(theirs: File, native: NativeBuilder) -> None:
    native.set("model.kind", "huggingface", "model")
    native.set("tokenizer", {"kind": "huggingface", "path": theirs.model}, "model")
    flash, key = theirs.train_parameters.use_flash_attention, f"{TRAIN}.use_flash_attention"
    if not flash:
        return
    if theirs.train_parameters.use_mp != "bf16":
        native.refuse(key, "FlashAttention computes in bf16 only; set use_mp: true, or this to false")
    installed = importlib.util.find_spec("flash_attn") is not None
    native.set("model.attention_backend", "flash_attention_2" if installed else "sdpa", key)
    if not installed:
        native.say(f"{key}: flash_attn is not installed, so PyTorch's own kernel (sdpa) computes the same attention")


def _adapters(theirs: File, native: NativeBuilder) -> None:
    keys = native.within(LORA)
    if not keys:
        return
    for name, default in (("rank", _RANK), ("alpha", _ALPHA)):
        if native.get(f"model.lora.{name}") is None:
            native.set(f"model.lora.{name}", default, *keys)
    targets = theirs.train_parameters.lora_peft_config.target_modules
    names = [targets] if isinstance(targets, str) else targets and list(targets)
    native.set("model.lora.targets", names, *([f"{LORA}.target_modules"] if names else keys))


def _schedule(theirs: File, native: NativeBuilder) -> None:
    key, ratio = f"{TRAIN}.lr_scheduler_type", f"{TRAIN}.warmup_ratio"
    name, warmup = theirs.train_parameters.lr_scheduler_type, theirs.train_parameters.warmup_ratio
    plateau = name in (PLATEAU, "reduce_lr_on_plateau")
    if name == "greedy":
        native.refuse(key, "greedy follows the loss of every step, which Quintet has no schedule for; take another")
    if name in ("constant", "reduce_lr_on_plateau") and warmup:
        other = PLATEAU if plateau else "constant_with_warmup"
        native.say(f"{ratio}: {name} has no warm-up, so it is not used; {other} has one")
        warmup = 0.0
    native.set("schedule.kind", "plateau" if plateau else "transformers", key)
    if not plateau:
        native.set("schedule.name", name, key)
    native.set("schedule.warmup_steps", warmup or 0, ratio)
    _schedule_arguments(theirs, native, name)


def _schedule_arguments(theirs: File, native: NativeBuilder, name: str) -> None:
    """Set the arguments of a schedule of transformers beside the warm-up."""
    lowest, others = f"{TRAIN}.min_lr", f"{TRAIN}.lr_scheduler_kwargs"
    arguments, floored = dict(theirs.train_parameters.lr_scheduler_kwargs or {}), name.endswith("with_min_lr")
    if native.has(lowest) and not floored:
        native.refuse(lowest, f"belongs to cosine_with_min_lr and cosine_warmup_with_min_lr, and {name} has none")
    elif native.has(lowest):
        arguments["min_lr"] = theirs.train_parameters.min_lr
    elif floored and arguments.keys().isdisjoint(("min_lr", "min_lr_rate")):
        arguments["min_lr"] = 0.0
        native.say(f"{TRAIN}.lr_scheduler_type: {name} without min_lr ends at 0; {lowest} sets another")
    if arguments and native.get("schedule.kind") == "transformers":
        native.set("schedule.arguments", arguments, lowest, others, f"{TRAIN}.lr_scheduler_type")


def _training(theirs: File, native: NativeBuilder) -> None:
    train, size = theirs.train_parameters, f"{DATA}.train_bs"
    accumulation, logging, saving = (
        f"{TRAIN}.{name}" for name in ("gradient_accumulation_steps", "logging_steps", "save_frequency")
    )
    if train.sharding_strategy is not None:
        native.set("parallel", dict(STRATEGIES[train.sharding_strategy]), f"{TRAIN}.sharding_strategy")
    native.set("train.clip_norm", train.max_grad_norm, f"{TRAIN}.max_grad_norm")
    passes = train.gradient_accumulation_steps
    native.set("train.batch_size_per_device", theirs.dataset.train_bs * passes, size, accumulation)
    every = max(1, (2 * train.logging_steps + passes) // (2 * passes))  # to the nearest, halves up
    native.set("evaluate.every", every, logging, accumulation)
    if every * passes != train.logging_steps:
        native.say(
            f"{logging}: {train.logging_steps} micro-batches are no whole number of steps of {passes}; evaluated "
            f"after every {every} steps"
        )
    native.set("evaluate.samples", None)
    native.set("sample.prompts", [])
    if train.checkpointing_enabled and train.save_frequency is None:
        native.refuse(saving, "is missing; give it, or checkpointing_enabled: false")
    native.set("checkpoint.every", None)
    if train.checkpointing_enabled:
        native.set("checkpoint.every_epochs", train.save_frequency, saving)
    else:
        native.set("checkpoint.every_epochs", None, f"{TRAIN}.checkpointing_enabled")
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    if theirs.enable_wandb_logging:
        wandb = {"kind": "wandb", "arguments": theirs.wandb_config or {}}
        native.set("track", [wandb], "wandb_config", "enable_wandb_logging")


def _folder(theirs: File, native: NativeBuilder) -> None:
    key = f"{TRAIN}.output_dir"
    folder = PurePath(theirs.train_parameters.output_dir)
    if folder.name in ("", ".."):
        native.refuse(key, "must end with a name, such as runs/mine")
        return
    native.set("runs_dir", str(folder.parent), key)
    native.set("name", folder.name, key)


def _back(config: RunConfig, put: Put) -> None:
    """Put every key that several native keys decide."""
    track = [one for one in config.track if one.kind == "wandb"]
    put("enable_wandb_logging", bool(track))
    if track and track[0].arguments:
        put("wandb_config", dict(track[0].arguments))
    _training_back(config, put)
    _schedule_back(config, put)
    _model_back(config, put)
    _optimizer(config, put)
    _data(config.data, put)


def _optimizer(config: RunConfig, put: Put) -> None:
    optimizer = config.optimizer
    own = isinstance(optimizer, AdamWConfig)
    arguments = {"betas": list(optimizer.betas), "eps": optimizer.eps} if own else optimizer.arguments
    known = {key.name for key in section_of(Optimizer).keys if key.role.to}
    for name, value in {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, **arguments}.items():
        if name in known:
            put(f"{TRAIN}.optimizer.{name}", value)


def _training_back(config: RunConfig, put: Put) -> None:
    passes = config.passes_each
    put(f"{TRAIN}.output_dir", str(PurePath(config.runs_dir) / config.name))
    put(f"{TRAIN}.max_seq_len", config.data.sequence_length + 1)
    put(f"{TRAIN}.gradient_accumulation_steps", passes)
    put(f"{DATA}.train_bs", config.batch.micro_batch_size)
    shard = {} if config.parallel.kind == "ddp" else {"shard": getattr(config.parallel, "shard", None)}
    for name, spread in STRATEGIES.items():
        if spread == {"kind": config.parallel.kind, **shard}:
            put(f"{TRAIN}.sharding_strategy", name)
    if config.train.clip_norm is not None:
        put(f"{TRAIN}.max_grad_norm", config.train.clip_norm)
    if isinstance(config.evaluate.every, int):
        put(f"{TRAIN}.logging_steps", config.evaluate.every * passes)
    part = config.checkpoint.every_epochs
    put(f"{TRAIN}.checkpointing_enabled", part is not None)
    if part is not None and part <= 1:
        put(f"{TRAIN}.save_frequency", part)


def _schedule_back(config: RunConfig, put: Put) -> None:
    schedule = config.schedule
    if isinstance(schedule, PlateauConfig):
        put(f"{TRAIN}.lr_scheduler_type", PLATEAU)
    elif isinstance(schedule, TransformersScheduleConfig):
        put(f"{TRAIN}.lr_scheduler_type", schedule.name)
    warmup = getattr(schedule, "warmup_steps", 0)
    if isinstance(warmup, float):
        put(f"{TRAIN}.warmup_ratio", warmup)


def _model_back(config: RunConfig, put: Put) -> None:
    if not isinstance(config.model, HuggingFaceConfig):
        return
    flash = config.model.attention_backend in ("flash_attention_2", "sdpa") and config.train.precision == "bf16"
    put(f"{TRAIN}.use_flash_attention", flash)
    lora = config.model.lora
    if lora is None:
        return
    put(f"{LORA}.task_type", "CAUSAL_LM")
    put(f"{LORA}.r", lora.rank)
    put(f"{LORA}.lora_alpha", lora.alpha)
    put(f"{LORA}.lora_dropout", lora.dropout)
    if lora.targets is not None:
        put(f"{LORA}.target_modules", list(lora.targets))


def _data(data: DataConfig, put: Put) -> None:
    source = data.sources[0]
    if not isinstance(source, HuggingFaceSource):
        return
    if isinstance(source.document, TokenField):
        put(f"{DATA}.train_ds", source.path)
        put(f"{DATA}.ignore_index", source.document.ignore_index)
        if data.validation_sources:
            put(f"{DATA}.eval_ds", getattr(data.validation_sources[0], "path", "???"))
    elif isinstance(source.document, TextField | ConditionalField):
        _preprocessing(source, source.document, data, put)


def _preprocessing(
    source: HuggingFaceSource, document: TextField | ConditionalField, data: DataConfig, put: Put
) -> None:
    put(f"{RAW}.load_path", source.path)
    put(f"{RAW}.split", source.split)
    put(f"{RAW}.from_disk", splits_of(source.path) is not None)
    put(f"{RAW}.data_field", document.field)
    if document.prefix:
        put(f"{RAW}.pre_pend", document.prefix)
    if isinstance(document, ConditionalField):
        put(f"{RAW}.seperator", document.separator)
    packing = data.packing
    if isinstance(packing, ChunkPackingConfig):
        put(f"{RAW}.packing_type", "full" if packing.join else "partial")
        put(f"{RAW}.overlap", packing.overlap)
    put(f"{RAW}.truncate", isinstance(packing, DocumentPackingConfig))
    put(f"{RAW}.add_bos_eos_tokens", getattr(packing, "add_bos_eos", False))


DIALECT = Dialect(
    "vectorlm",
    "VectorLM",
    schema=File,
    rules=_rules,
    back=_back,
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
