"""From a native run file back to the keys of PhyAGI that several native keys decide."""

from collections.abc import Mapping
from typing import Any

from quintet.config.describe import KeyInfo, section_of, walk
from quintet.config.dialects.dialect import Put
from quintet.config.dialects.phyagi.schema_ds_config import DeepSpeedConfig, OptimizerParams
from quintet.config.dialects.phyagi.translate_nesting import owner_of
from quintet.config.dialects.phyagi.values import (
    ARGS,
    ARGUMENTS,
    DS,
    MIXER,
    MIXFORMER,
    MODULE,
    OWN_SCHEDULES,
    PL,
    PRETRAINED,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULES,
    ZERO_ONLY,
)
from quintet.config.keypath import is_mapping
from quintet.config.model import NormalInitConfig, PretrainedInitConfig, TransformerConfig
from quintet.config.optimizer import OptimizerConfig, as_class
from quintet.config.packing import StreamPackingConfig
from quintet.config.parallel import DeepSpeedConfig as DeepSpeedParallel
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import NpySource, SourceConfig
from quintet.config.tokenizer import HuggingFaceTokenizerConfig, IdTokenizerConfig


def _trainer(config: RunConfig) -> str:
    """The PhyAGI trainer of ``config``: deepspeed for Quintet's own."""
    return {"transformers": "huggingface", "lightning": "lightning"}.get(config.trainer.kind, "deepspeed")


def writes(config: RunConfig, key: KeyInfo) -> bool:
    """Return True if the trainer of ``config`` has ``key``."""
    owner = "deepspeed or huggingface" if key.path == f"{ARGS}.logging_steps" else owner_of(key.path)
    return _trainer(config) in owner or not owner


def back(config: RunConfig, put: Put) -> None:
    """Put the keys of a file for the trainer of ``config``."""
    put("output_dir", f"{config.runs_dir}/{config.name}")
    _data(config, put)
    if isinstance(config.model, TransformerConfig):
        _transformer(config.model, put)
        if config.train.activation_checkpointing == 1:
            put("model.gradient_checkpointing", True)
    else:
        put(PRETRAINED if config.model.pretrained else "model.model_type", config.model.name_or_path)
        for key in ("gradient_checkpointing", "trust_remote_code"):
            if getattr(config.model, key):
                put(f"model.{key}", True)
    if config.train.compile is True:
        put("model.use_torch_compile", True)
    for tracker in config.track:
        put(f"{ARGS}.{tracker.kind}", True)
    if config.checkpoint.every is None:
        put(f"{ARGS}.save_steps", None)
    trainer = _trainer(config)
    if trainer != "deepspeed":
        put("trainer", trainer)
        if arguments := getattr(config.trainer, "arguments", {}):
            put(ARGUMENTS, dict(arguments))
        if config.evaluate.at_end:
            put(f"{ARGS}.do_final_eval", True)
    seconds = getattr(config.parallel, "timeout_seconds", 600.0)
    if seconds != 600.0 and seconds == int(seconds):
        put(f"{ARGS}.timeout", int(seconds))
    {"huggingface": _huggingface, "lightning": _lightning, "deepspeed": _deepspeed}[trainer](config, put)


def _data(config: RunConfig, put: Put) -> None:
    data, loss = config.data, config.loss
    used: set[int] = set()
    for index, source in enumerate(data.sources):
        _dataset(index, source, config, put, used)
    if len(data.validation_sources) > 1 and {source.label for source in data.validation_sources} == {"0"}:
        put("eval_dataset_concat", "random")
    put("dataset_concat", data.mixing)
    if isinstance(config.tokenizer, HuggingFaceTokenizerConfig):
        put("dataset[0].tokenizer_file", config.tokenizer.path)
    elif isinstance(config.tokenizer, IdTokenizerConfig):
        put("model.vocab_size", config.tokenizer.vocab_size)
        if config.tokenizer.end_id is not None:
            put("model.cross_sample_token_id", config.tokenizer.end_id)
    if loss.ignore_token_ids:
        put("dataset_collator.ignore_token_ids", list(loss.ignore_token_ids))
    if loss.ignore_token_range is not None:
        put("dataset_collator.ignore_token_range", list(loss.ignore_token_range))
    ignore_index = getattr(data.sources[0], "ignore_index", -100)
    if ignore_index != -100:
        put("dataset_collator.ignore_index", ignore_index)


def _dataset(index: int, source: SourceConfig, config: RunConfig, put: Put, used: set[int]) -> None:
    """Put an entry of `dataset`, with the first validation source of its label whose number is not in ``used``."""
    data, entry = config.data, f"dataset[{index}]"
    put(f"{entry}.seq_len", data.sequence_length)
    put(f"{entry}.shift_labels", isinstance(data.packing, StreamPackingConfig) and data.packing.predict_next)
    put(f"{entry}.weight", 1.0 if source.repeat is None else source.repeat)
    if source.label is not None and source.label != str(index):
        put(f"{entry}.label", source.label)
    if not isinstance(source, NpySource) or not isinstance(source.path, str):
        return
    put(f"{entry}.train_file", source.path)
    for number, validation in enumerate(data.validation_sources):
        if number in used or validation.label not in (source.label, "0"):
            continue
        if not isinstance(validation, NpySource) or not isinstance(validation.path, str):
            continue
        if validation.path == source.path and validation.stop == source.start:
            put(f"{entry}.validation_split", source.start)
        else:
            put(f"{entry}.validation_file", validation.path)
        used.add(number)
        return


def _transformer(model: TransformerConfig, put: Put) -> None:
    put("model.model_type", MIXFORMER)
    put("model.n_head", model.heads)
    put("model.n_inner", model.hidden)
    if model.output_bias != model.attention.bias:
        put(f"{MIXER}.out_bias", model.output_bias)
    if isinstance(model.init, NormalInitConfig):
        put("model.initializer_range", model.init.std)
    if isinstance(model.init, PretrainedInitConfig):
        put(PRETRAINED, model.init.path)
    put("model.embd_layer", "positional" if model.learns_positions else "default")
    if model.position.kind != "rope":
        put("model.rotary_dim", -1)
        return
    put("model.rotary_dim", model.rotary_dim)
    put(f"{MIXER}.rotary_base", model.position.theta)
    scaling = model.position.scaling
    if scaling.kind in ("yarn", "linear"):
        values = {name: value for name, value in scaling.model_dump().items() if value is not None}
        values["rope_type"] = values.pop("kind")
        if "original_context" in values:
            values["original_max_position_embeddings"] = values.pop("original_context")
        put(f"{MIXER}.rope_scaling", values)


def _put_all(put: Put, section: str, values: dict[str, Any]) -> None:
    """Put the ``values`` that are not None into ``section``."""
    for name, value in values.items():
        if value is not None:
            put(f"{section}.{name}", value)


def _optimizer(config: OptimizerConfig, put: Put, section: str, names: Mapping[str, str] | None = None) -> None:
    """Put the optimizer's class, by its name in ``names`` if it has one there, and its parameters into ``section``."""
    optimizer = as_class(config)
    if optimizer is None:
        return
    known = {leaf: value for leaf, value in optimizer.arguments.items() if leaf in OptimizerParams.model_fields}
    put(f"{section}.type", (names or {}).get(optimizer.name, optimizer.name))
    _put_all(put, f"{section}.params", {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, **known})


def _deepspeed(config: RunConfig, put: Put) -> None:
    train, batch = config.train, config.batch
    _optimizer(config.optimizer, put, f"{DS}.optimizer")
    if isinstance(config.schedule, DeepSpeedScheduleConfig):
        put(f"{DS}.scheduler.type", config.schedule.name)
        put(f"{DS}.scheduler.params", dict(config.schedule.arguments))
    if isinstance(config.parallel, DeepSpeedParallel):
        _zero(config.parallel.config, put)
    if train.precision in ("fp16", "bf16"):
        put(f"{DS}.{train.precision}.enabled", True)
    if train.precision == "auto":
        put("model.torch_dtype", "auto")
    if train.batch_size_per_device is None:
        put(f"{DS}.train_batch_size", batch.samples)
    else:
        put(f"{DS}.gradient_accumulation_steps", config.passes_each)
    if train.micro_batch_size is not None or train.batch_size_per_device is not None:
        put(f"{DS}.train_micro_batch_size_per_gpu", batch.micro_batch_size)
    put(f"{DS}.gradient_clipping", train.clip_norm or 0.0)
    if train.steps is not None:
        put(f"{ARGS}.max_steps", train.steps)
    elif train.epochs is not None:
        put(f"{ARGS}.num_train_epochs", train.epochs)
    put(f"{ARGS}.do_eval", not config.evaluate.never)
    put(f"{ARGS}.do_final_eval", config.evaluate.at_end)
    put(f"{ARGS}.eval_steps", config.evaluate.every)
    samples = config.evaluate.samples
    if samples is not None and samples % batch.samples == 0:
        put(f"{ARGS}.eval_max_steps", samples // batch.samples)


def _zero(settings: dict[str, Any], put: Put) -> None:
    """Put those of DeepSpeed's own settings that PhyAGI's files have."""
    known = {key.path for key in walk(section_of(DeepSpeedConfig)) if not key.kinds}
    for name in ("zero_optimization", *ZERO_ONLY):
        setting = settings.get(name)
        values = (
            {f"{name}.{leaf}": value for leaf, value in setting.items()} if is_mapping(setting) else {name: setting}
        )
        _put_all(put, DS, {path: value for path, value in values.items() if path in known})


def _huggingface(config: RunConfig, put: Put) -> None:
    """Put the arguments of the transformers library's Trainer."""
    train, optimizer, schedule = config.train, as_class(config.optimizer), config.schedule
    if optimizer is not None and optimizer.name == "AdamW":
        beta1, beta2 = optimizer.arguments.get("betas", (None, None))
        settings = {"adam_beta1": beta1, "adam_beta2": beta2, "adam_epsilon": optimizer.arguments.get("eps")}
        _put_all(put, ARGS, {"optim": "adamw", **settings})
    elif optimizer is not None:
        put(f"{ARGS}.optim", optimizer.name)
    if isinstance(schedule, TransformersScheduleConfig):
        name = "warmup_steps" if isinstance(schedule.warmup_steps, int) else "warmup_ratio"
        put(f"{ARGS}.{name}", schedule.warmup_steps)
    if train.precision in ("bf16", "fp16"):
        put(f"{ARGS}.{train.precision}", True)
    values = {
        "per_device_train_batch_size": config.batch.micro_batch_size,
        "gradient_accumulation_steps": config.passes_each,
        "max_grad_norm": train.clip_norm or 0.0,
        "eval_strategy": "no" if config.evaluate.every is None else "steps",
        "eval_steps": config.evaluate.every,
        "max_steps": train.steps,
        "num_train_epochs": train.epochs if train.steps is None else None,
    }
    _put_all(put, ARGS, values)


def _lightning(config: RunConfig, put: Put) -> None:
    """Put the arguments of Lightning's Trainer and of PhyAGI's module for it."""
    train, batch, schedule = config.train, config.batch, config.schedule
    names = {name: theirs for theirs, name in (TORCH_OPTIMIZERS | TORCH_SCHEDULES | OWN_SCHEDULES).items()}
    _optimizer(config.optimizer, put, f"{MODULE}.optimizer", {**names, "AdamW": "adamw"})
    if isinstance(schedule, TorchScheduleConfig | DeepSpeedScheduleConfig):
        put(f"{MODULE}.scheduler.type", names.get(schedule.name, schedule.name))
        put(f"{MODULE}.scheduler.params", dict(schedule.arguments))
    put(f"{ARGS}.train_micro_batch_size_per_gpu", batch.micro_batch_size)
    every, samples = config.evaluate.every, config.evaluate.samples
    if isinstance(every, float):
        every = every * train.epochs if train.epochs and train.steps is None else None
    elif every is not None:
        every *= config.passes_each
    values = {
        "accumulate_grad_batches": config.passes_each,
        "gradient_clip_val": train.clip_norm,
        "max_epochs": train.epochs,
        "max_steps": train.steps,
        "val_check_interval": every,
        "limit_val_batches": None if samples is None else samples // batch.micro_batch_size,
    }
    _put_all(put, PL, values)
