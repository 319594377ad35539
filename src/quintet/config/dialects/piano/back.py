"""From a native run file back to the keys of piano-gpt that several native keys decide."""

from typing import Any

from quintet.config.dialects.dialect import Put
from quintet.config.dialects.piano import values
from quintet.config.documents import NotesField
from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.schedule import ConstantConfig, CosineConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource, MidiSource, SourceConfig
from quintet.config.tokenizer import ExponentialTimeTokenizerConfig, NoteBPETokenizerConfig

_OF_KEYS = {"sequence_length", "learn_prompts", "processes"}
"""The native keys of `data` that a key of piano-gpt always says."""


def back(config: RunConfig, put: Put) -> None:
    """Put the keys of piano-gpt that several native keys decide. Data and tokenizer that it has no keys for go into the
    section `quintet:`, as far as they differ from the defaults."""
    put("loss_masking", "pretraining" if config.data.learn_prompts else "finetuning")
    put("data.context_size", config.data.sequence_length)
    if config.data.processes is not None:
        put("system.data_workers", config.data.processes)
    put("out_dir", config.runs_dir)
    put("system.dtype", config.train.precision)
    put("system.compile", config.train.compile is not False)
    if isinstance(config.model, TransformerConfig):
        _put_model(config.model, put)
    _put_training(config, put)
    _put_logging(config, put)
    written = _OF_KEYS | _put_music(config, put)
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    tokenizer = config.tokenizer.model_dump(mode="json", exclude_defaults=True)
    native = {
        "data": {name: value for name, value in data.items() if name not in written},
        "tokenizer": {} if "tokenizer" in written else tokenizer,
    }
    if any(native.values()):
        put("quintet", {name: section for name, section in native.items() if section})


def _put_model(model: TransformerConfig, put: Put) -> None:
    init = model.init
    put("init_from", init.path if isinstance(init, PretrainedInitConfig) else values.SCRATCH[0])
    put("model.dropout", model.residual_dropout)
    put("model.bias", model.feedforward.bias)
    put("model.n_head", model.heads)
    if model.context_length is not None:
        put("model.context_size", model.context_length)


def _put_training(config: RunConfig, put: Put) -> None:
    batch = config.batch
    put("data.batch_size", batch.micro_batch_size)
    put("optimizer.gradient_accumulation_steps", batch.accumulation)
    put("optimizer.grad_clip", config.train.clip_norm or 0.0)
    if isinstance(config.optimizer, AdamWConfig):
        put("optimizer.beta1", config.optimizer.betas[0])
        put("optimizer.beta2", config.optimizer.betas[1])
    schedule = config.schedule
    put("lr.decay_lr", not isinstance(schedule, ConstantConfig))
    if isinstance(schedule, CosineConfig):
        put("lr.min_lr", schedule.min_lr)
        put("lr.warmup_iters", schedule.warmup_steps)
        put("lr.lr_decay_iters", schedule.decay_steps or config.train.steps)
    if isinstance(config.evaluate.every, int):
        put("eval_interval", config.evaluate.every)
    if config.evaluate.samples is not None:
        put("eval_iters", max(1, config.evaluate.samples // batch.micro_batch_size))


def _put_logging(config: RunConfig, put: Put) -> None:
    tracker = next((tracker for tracker in config.track if tracker.kind == "wandb"), None)
    put("logging.wandb_log", tracker is not None)
    arguments: dict[str, Any] = dict(tracker.arguments) if tracker is not None else {}
    for name in ("project", "entity"):
        if name in arguments:
            put(f"logging.wandb_{name}", arguments[name])
    name = str(arguments.get("name", ""))
    if name.startswith(f"{values.RUN_NAME}-"):
        put("logging.wandb_run_name_suffix", name.removeprefix(f"{values.RUN_NAME}-"))


def _put_music(config: RunConfig, put: Put) -> set[str]:
    """Put the keys of the music. Return the native keys of `data` that they say, and `tokenizer` if they say it."""
    packing = config.data.packing
    if not isinstance(packing, MusicPackingConfig):
        return set()
    put("dataset.augmentation.speed_change_factors", list(packing.speeds))
    put("dataset.augmentation.max_pitch_shift", packing.max_pitch_shift)
    put("stage", values.PIANO_TASK if isinstance(packing, TaskPackingConfig) else values.NEXT_TOKEN)
    if isinstance(packing, TaskPackingConfig):
        put("tasks", list(packing.tasks))
        put("data.notes_per_record", packing.notes_per_record)
        if packing.min_notes_per_record is not None:
            put("training.min_notes_per_record", packing.min_notes_per_record)
        if packing.min_task_notes is not None:
            put("training.min_n_task_notes", packing.min_task_notes)
    return {"packing", *_put_data_sets(config, put), *_put_tokenizer(config, put)}


def _put_data_sets(config: RunConfig, put: Put) -> set[str]:
    """Put the names of the data sets, if piano-gpt's names are read as the sources of ``config``."""
    data = config.data
    names = [_name(source) for source in data.sources]
    base = _name(data.validation_sources[0]) if data.validation_sources else None
    pauses = _pauses(data.sources[0])
    if base is None or pauses is None or not all(names):
        return set()
    splits = [source.label or values.FULL for source in data.validation_sources]
    trained = [values.training_source(name, pauses) for name in names if name]
    validated = values.validation_sources(base, splits, pauses)
    if not (_equal(data.sources, trained) and _equal(data.validation_sources, validated)):
        return set()
    put("dataset.base_dataset_name", base)
    put("dataset.extra_datasets", names)
    put("dataset.pause_detection_threshold", pauses)
    if tuple(splits) != values.REPORTED:
        put("eval_splits", splits)
    return {"sources", "validation_sources", "validation"}


def _name(source: SourceConfig) -> str | None:
    if isinstance(source, HuggingFaceSource):
        return source.path
    if not isinstance(source, MidiSource) or not isinstance(source.path, str):
        return None
    return values.data_set_name(source.path)


def _pauses(source: SourceConfig) -> float | None:
    if isinstance(source, MidiSource):
        return source.pauses
    document = getattr(source, "document", None)
    return document.pauses if isinstance(document, NotesField) else None


def _equal(sources: tuple[SourceConfig, ...], translated: list[dict[str, Any]]) -> bool:
    return len(sources) == len(translated) and all(
        source.kind == value["kind"] and type(source).model_validate(value) == source
        for source, value in zip(sources, translated, strict=True)
    )


def _put_tokenizer(config: RunConfig, put: Put) -> set[str]:
    tokenizer = config.tokenizer
    base = tokenizer.base if isinstance(tokenizer, NoteBPETokenizerConfig) else tokenizer
    if not isinstance(base, ExponentialTimeTokenizerConfig):
        return set()
    if base.model_dump(exclude_defaults=True).keys() - {"kind", *values.SETTINGS.values()}:
        return set()
    settings = {theirs: getattr(base, ours) for theirs, ours in values.SETTINGS.items()}
    if not isinstance(tokenizer, NoteBPETokenizerConfig):
        put("tokenizer.class_name", values.EXPONENTIAL)
        put("tokenizer.config", settings)
        return {"tokenizer"}
    if "train_tokens" in tokenizer.model_dump(exclude_defaults=True):
        return set()
    put("tokenizer.class_name", values.AWESOME)
    put("tokenizer.base_tokenizer", values.EXPONENTIAL)
    put("tokenizer.base_tokenizer_parameters", settings)
    put("tokenizer.parameters", {theirs: getattr(tokenizer, ours) for theirs, ours in values.MERGES.items()})
    return {"tokenizer"}
