"""From a native run file back to the keys of VectorLM that several native keys decide."""

from pathlib import PurePath

from quintet.config.data import DataConfig
from quintet.config.dialects.dialect import Put
from quintet.config.dialects.vectorlm.schema import DATA, LORA, PLATEAU, RAW, STRATEGIES, TRAIN
from quintet.config.dialects.vectorlm.translate_data import splits_of
from quintet.config.documents import ConditionalField, TextField, TokenField
from quintet.config.model import HuggingFaceConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.packing import ChunkPackingConfig, DocumentPackingConfig
from quintet.config.schedule import PlateauConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource


def back(config: RunConfig, put: Put) -> None:
    """Put the keys of VectorLM that several native keys decide; the schema names the others' native keys with `to`."""
    trackers = [tracker for tracker in config.track if tracker.kind == "wandb"]
    put("enable_wandb_logging", bool(trackers))
    if trackers and trackers[0].arguments:
        put("wandb_config", dict(trackers[0].arguments))
    _training(config, put)
    _schedule(config, put)
    if isinstance(config.model, HuggingFaceConfig):
        _model(config, config.model, put)
    if isinstance(config.optimizer, AdamWConfig):
        put(f"{TRAIN}.optimizer.betas", list(config.optimizer.betas))
        put(f"{TRAIN}.optimizer.eps", config.optimizer.eps)
    source = config.data.sources[0]
    if isinstance(source, HuggingFaceSource):
        _data(source, config.data, put)


def _training(config: RunConfig, put: Put) -> None:
    passes = config.passes_each
    put(f"{TRAIN}.output_dir", str(PurePath(config.runs_dir) / config.name))
    put(f"{TRAIN}.max_seq_len", config.data.sequence_length + 1)
    put(f"{TRAIN}.gradient_accumulation_steps", passes)
    put(f"{DATA}.train_bs", config.batch.micro_batch_size)
    shard = {} if config.parallel.kind == "ddp" else {"shard": getattr(config.parallel, "shard", None)}
    for name, parallel in STRATEGIES.items():
        if parallel == {"kind": config.parallel.kind, **shard}:
            put(f"{TRAIN}.sharding_strategy", name)
    if config.train.clip_norm is not None:
        put(f"{TRAIN}.max_grad_norm", config.train.clip_norm)
    if isinstance(config.evaluate.every, int):
        put(f"{TRAIN}.logging_steps", config.evaluate.every * passes)
    epochs = config.checkpoint.every_epochs
    put(f"{TRAIN}.checkpointing_enabled", epochs is not None)
    if epochs is not None and epochs <= 1:
        put(f"{TRAIN}.save_frequency", epochs)


def _schedule(config: RunConfig, put: Put) -> None:
    schedule = config.schedule
    if isinstance(schedule, PlateauConfig):
        put(f"{TRAIN}.lr_scheduler_type", PLATEAU)
    elif isinstance(schedule, TransformersScheduleConfig):
        put(f"{TRAIN}.lr_scheduler_type", schedule.name)
    warmup = getattr(schedule, "warmup_steps", 0)
    if isinstance(warmup, float):
        put(f"{TRAIN}.warmup_ratio", warmup)


def _model(config: RunConfig, model: HuggingFaceConfig, put: Put) -> None:
    flash = model.attention_backend in ("flash_attention_2", "sdpa") and config.train.precision == "bf16"
    put(f"{TRAIN}.use_flash_attention", flash)
    if model.lora is not None:
        put(f"{LORA}.task_type", "CAUSAL_LM")
    if model.lora is not None and model.lora.targets is not None:
        put(f"{LORA}.target_modules", list(model.lora.targets))


def _data(source: HuggingFaceSource, data: DataConfig, put: Put) -> None:
    """Put the processed dataset, or the documents to process, that ``source`` names."""
    document, packing = source.document, data.packing
    if isinstance(document, TokenField):
        put(f"{DATA}.train_ds", source.path)
        put(f"{DATA}.ignore_index", document.ignore_index)
        if data.validation_sources:
            put(f"{DATA}.eval_ds", getattr(data.validation_sources[0], "path", "???"))
    if not isinstance(document, TextField | ConditionalField):
        return
    put(f"{RAW}.load_path", source.path)
    put(f"{RAW}.split", source.split)
    put(f"{RAW}.from_disk", splits_of(source.path) is not None)
    put(f"{RAW}.data_field", document.field)
    if document.prefix:
        put(f"{RAW}.pre_pend", document.prefix)
    if isinstance(document, ConditionalField):
        put(f"{RAW}.seperator", document.separator)
    if isinstance(packing, ChunkPackingConfig):
        put(f"{RAW}.packing_type", "full" if packing.join else "partial")
        put(f"{RAW}.overlap", packing.overlap)
    put(f"{RAW}.truncate", isinstance(packing, DocumentPackingConfig))
    put(f"{RAW}.add_bos_eos_tokens", getattr(packing, "add_bos_eos", False))
