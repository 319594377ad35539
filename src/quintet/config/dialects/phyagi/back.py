"""What the table alone cannot say of a native run file in PhyAGI's words."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.back_others import huggingface_back, lightning_back, put_optimizer, put_waiting
from quintet.config.dialects.phyagi.model import ARCHITECTURE, MIXER, PLAIN
from quintet.config.dialects.phyagi.model_keys import MIXFORMER
from quintet.config.dialects.phyagi.training_keys import ARGS, DEEPSPEED, DS, ZERO_ALONE
from quintet.config.dialects.phyagi.values import OFF
from quintet.config.dialects.table import Put
from quintet.config.keypath import path_of
from quintet.config.model import NormalInitConfig, PretrainedInitConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.packing import StreamPackingConfig
from quintet.config.parallel import DeepSpeedConfig
from quintet.config.schedule import DeepSpeedScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import NpySource, SourceConfig
from quintet.config.tokenizer import HuggingFaceTokenizerConfig, IdTokenizerConfig

DS_LEAVES = {key.path.removeprefix(f"{DS}.") for key in DEEPSPEED}


def back(config: RunConfig, put: Put) -> None:
    """Put in a file of PhyAGI what ``config`` says, for the trainer that it names: DeepSpeed's where it is our own."""
    put("output_dir", f"{config.runs_dir}/{config.name}")
    _data(config, put)
    if isinstance(config.model, TransformerConfig):
        _transformer(config, config.model, put)
    else:
        name = "pretrained_model_name_or_path" if config.model.pretrained else "model_type"
        put(f"model.{name}", config.model.name_or_path)
        for key in ("gradient_checkpointing", "trust_remote_code"):
            if getattr(config.model, key):
                put(f"model.{key}", True)
    if config.train.activation_checkpointing == 1 and isinstance(config.model, TransformerConfig):
        put("model.gradient_checkpointing", True)
    if config.train.compile is True:
        put("model.use_torch_compile", True)
    for entry in config.track:
        put(f"{ARGS}.{entry.kind}", True)
    {"transformers": huggingface_back, "lightning": lightning_back}.get(config.trainer.kind, _deepspeed)(config, put)


def _data(config: RunConfig, put: Put) -> None:
    data = config.data
    used: set[int] = set()
    for index, source in enumerate(data.sources):
        _dataset(index, source, config, put, used)
    labels = {source.label for source in data.validation_sources}
    if len(data.validation_sources) > 1 and labels == {"0"}:
        put("eval_dataset_concat", "random")
    put("dataset_concat", data.mixing)
    if isinstance(config.tokenizer, HuggingFaceTokenizerConfig):
        put("dataset[0].tokenizer_file", config.tokenizer.path)
    elif isinstance(config.tokenizer, IdTokenizerConfig):
        put("model.vocab_size", config.tokenizer.vocab_size)
        if config.tokenizer.end_id is not None:
            put("model.cross_sample_token_id", config.tokenizer.end_id)
    if config.loss.ignore_token_ids:
        put("dataset_collator.ignore_token_ids", list(config.loss.ignore_token_ids))
    if config.loss.ignore_token_range is not None:
        put("dataset_collator.ignore_token_range", tuple(config.loss.ignore_token_range))
    index = getattr(data.sources[0], "ignore_index", -100)
    if index != -100:
        put("dataset_collator.ignore_index", index)


def _dataset(index: int, source: SourceConfig, config: RunConfig, put: Put, used: set[int]) -> None:
    """An entry of `dataset`, with the validation source of its label."""
    data, entry = config.data, f"dataset[{index}]"
    put(f"{entry}.seq_len", data.sequence_length)
    put(f"{entry}.shift_labels", isinstance(data.packing, StreamPackingConfig) and data.packing.predict_next)
    put(f"{entry}.weight", 1.0 if source.repeat is None else source.repeat)
    if source.label is not None and source.label != str(index):
        put(f"{entry}.label", source.label)
    if not isinstance(source, NpySource) or not isinstance(source.path, str):
        return
    put(f"{entry}.train_file", source.path)
    for number, other in enumerate(data.validation_sources):
        if number in used or other.label not in (source.label, "0"):
            continue
        if not isinstance(other, NpySource) or not isinstance(other.path, str):
            continue
        if other.path == source.path and other.stop == source.start:
            put(f"{entry}.validation_split", source.start)
        else:
            put(f"{entry}.validation_file", other.path)
        used.add(number)
        return


def _transformer(config: RunConfig, model: TransformerConfig, put: Put) -> None:
    put("model.model_type", MIXFORMER)
    for key, path in PLAIN.items():
        found: Any = config
        for step in path_of(path):
            found = getattr(found, str(step), None)
        if found is not None:
            put(key, found)
    put("model.n_head", model.heads)
    put("model.n_inner", model.hidden)
    put(f"{MIXER}.causal", model.attention.kind == "causal")
    if model.output_bias != model.attention.bias:
        put(f"{MIXER}.out_bias", model.output_bias)
    if model.attention.qk_norm == "head":
        put(f"{MIXER}.qk_norm", True)
    if model.attention.window is not None:
        put(f"{MIXER}.window_size", model.attention.window - 1)
    _positions(model, put)
    if isinstance(model.init, NormalInitConfig):
        put("model.initializer_range", model.init.std)
    if isinstance(model.init, PretrainedInitConfig):
        put("model.pretrained_model_name_or_path", model.init.path)
    put(f"{ARCHITECTURE}.mlp.mlp_cls", model.feedforward.kind)


def _positions(model: TransformerConfig, put: Put) -> None:
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


def _deepspeed(config: RunConfig, put: Put) -> None:
    _optimizer(config, put)
    _parallel(config, put)
    train, batch = config.train, config.batch
    for name in ("fp16", "bf16"):
        if train.precision == name:
            put(f"{DS}.{name}.enabled", True)
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
    put(f"{ARGS}.logging_steps", train.log_every)
    put(f"{ARGS}.save_steps", OFF if config.checkpoint.every is None else config.checkpoint.every)
    put(f"{ARGS}.save_final_checkpoint", config.checkpoint.at_end)
    put(f"{ARGS}.do_eval", not config.evaluate.never)
    put(f"{ARGS}.do_final_eval", config.evaluate.at_end)
    put(f"{ARGS}.eval_steps", OFF if config.evaluate.every is None else config.evaluate.every)
    put(f"{ARGS}.dataloader_shuffle", config.data.shuffle)
    samples = config.evaluate.samples
    if samples is not None and samples % batch.samples == 0:
        put(f"{ARGS}.eval_max_steps", samples // batch.samples)


def _parallel(config: RunConfig, put: Put) -> None:
    """DeepSpeed's own settings, as far as PhyAGI's files have them."""
    put_waiting(config, put)
    if not isinstance(config.parallel, DeepSpeedConfig):
        return
    settings = config.parallel.config
    for name in ("zero_optimization", *ZERO_ALONE):
        block = settings.get(name)
        leaves = (
            {f"{name}.{leaf}": value for leaf, value in block.items()} if isinstance(block, dict) else {name: block}
        )
        for leaf, value in leaves.items():
            if value is not None and leaf in DS_LEAVES:
                put(f"{DS}.{leaf}", value)


def _optimizer(config: RunConfig, put: Put) -> None:
    section, chosen = f"{DS}.optimizer", config.optimizer
    put_optimizer(config, put, section, "AdamW" if isinstance(chosen, AdamWConfig) else chosen.name)
    if isinstance(config.schedule, DeepSpeedScheduleConfig):
        put(f"{DS}.scheduler.type", config.schedule.name)
        put(f"{DS}.scheduler.params", dict(config.schedule.arguments))
