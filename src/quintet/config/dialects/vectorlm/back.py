"""A native run file written for VectorLM, as far as the table alone cannot."""

from __future__ import annotations

from pathlib import PurePath

from quintet.config.data import DataConfig
from quintet.config.dialects.table import Put
from quintet.config.dialects.vectorlm.disk import splits_of
from quintet.config.dialects.vectorlm.keys import DATA, KEYS, LORA, PLATEAU, RAW, STRATEGIES, TRAIN
from quintet.config.documents import ConditionalField, TextField, TokenField
from quintet.config.model import HuggingFaceConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.packing import ChunkPackingConfig, DocumentPackingConfig
from quintet.config.schedule import PlateauConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource


def back(config: RunConfig, put: Put) -> None:
    """Put every key that several native keys decide."""
    track = [one for one in config.track if one.kind == "wandb"]
    put("enable_wandb_logging", bool(track))
    if track and track[0].arguments:
        put("wandb_config", dict(track[0].arguments))
    _training(config, put)
    _schedule(config, put)
    _model(config, put)
    _optimizer(config, put)
    _data(config.data, put)


def _optimizer(config: RunConfig, put: Put) -> None:
    optimizer = config.optimizer
    own = isinstance(optimizer, AdamWConfig)
    arguments = {"betas": list(optimizer.betas), "eps": optimizer.eps} if own else optimizer.arguments
    known = {key.name for key in KEYS if key.path.startswith(f"{TRAIN}.optimizer.") and key.to}
    for name, value in {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, **arguments}.items():
        if name in known:
            put(f"{TRAIN}.optimizer.{name}", value)


def _training(config: RunConfig, put: Put) -> None:
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


def _schedule(config: RunConfig, put: Put) -> None:
    schedule = config.schedule
    if isinstance(schedule, PlateauConfig):
        put(f"{TRAIN}.lr_scheduler_type", PLATEAU)
    elif isinstance(schedule, TransformersScheduleConfig):
        put(f"{TRAIN}.lr_scheduler_type", schedule.name)
    warmup = getattr(schedule, "warmup_steps", 0)
    if isinstance(warmup, float):
        put(f"{TRAIN}.warmup_ratio", warmup)


def _model(config: RunConfig, put: Put) -> None:
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
