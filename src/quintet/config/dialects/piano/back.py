"""A native run file written for piano-gpt, as far as the table alone cannot."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.piano.keys import SCRATCH
from quintet.config.dialects.piano.music_back import music_back
from quintet.config.dialects.piano.rules import RUN_NAME
from quintet.config.dialects.table import Put
from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.schedule import ConstantConfig, CosineConfig
from quintet.config.schema import RunConfig

_SAID_BY_KEYS = {"sequence_length", "learn_prompts", "processes"}


def back(config: RunConfig, put: Put) -> None:
    """Put every key that several native keys decide, and the data as native keys."""
    put("loss_masking", "pretraining" if config.data.learn_prompts else "finetuning")
    put("data.context_size", config.data.sequence_length)
    if config.data.processes is not None:
        put("system.data_workers", config.data.processes)
    put("out_dir", config.runs_dir)
    put("system.dtype", config.train.precision)
    put("system.compile", config.train.compile is not False)
    if isinstance(config.model, TransformerConfig):
        _model(config.model, put)
    _training(config, put)
    _logging(config, put)
    said = music_back(config, put)
    native = _native(config, said)
    if native:
        put("quintet", native)


def _model(model: TransformerConfig, put: Put) -> None:
    init = model.init
    put("init_from", init.path if isinstance(init, PretrainedInitConfig) else SCRATCH[0])
    put("model.dropout", model.residual_dropout)
    put("model.bias", model.feedforward.bias)
    put("model.n_head", model.heads)
    if model.context_length is not None:
        put("model.context_size", model.context_length)


def _training(config: RunConfig, put: Put) -> None:
    shape = config.batch
    put("data.batch_size", shape.micro_batch_size)
    put("optimizer.gradient_accumulation_steps", shape.accumulation)
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
        put("eval_iters", max(1, config.evaluate.samples // shape.micro_batch_size))


def _logging(config: RunConfig, put: Put) -> None:
    track = next((one for one in config.track if one.kind == "wandb"), None)
    put("logging.wandb_log", track is not None)
    if track is None:
        return
    arguments: dict[str, Any] = dict(track.arguments)
    if "project" in arguments:
        put("logging.wandb_project", arguments["project"])
    if "entity" in arguments:
        put("logging.wandb_entity", arguments["entity"])
    name = str(arguments.get("name", ""))
    if name.startswith(f"{RUN_NAME}-"):
        put("logging.wandb_run_name_suffix", name.removeprefix(f"{RUN_NAME}-"))


def _native(config: RunConfig, said: set[str]) -> dict[str, Any]:
    """What piano-gpt has no words for: data and tokenizer, as far as they differ from the defaults and are not ``said``
    by keys of its own."""
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    tokenizer = config.tokenizer.model_dump(mode="json", exclude_defaults=True)
    rest = {name: value for name, value in data.items() if name not in _SAID_BY_KEYS | said}
    found: dict[str, Any] = {"data": rest} if rest else {}
    return found | ({"tokenizer": tokenizer} if tokenizer and "tokenizer" not in said else {})
