"""A native run in the Trainer of another library, in the words that PhyAGI's files have for it."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.hf_lightning import OWN_SCHEDULES, TORCH, TORCH_SCHEDULES
from quintet.config.dialects.phyagi.other_keys import ARGUMENTS, MODULE, PL
from quintet.config.dialects.phyagi.training_keys import ARGS
from quintet.config.dialects.phyagi.values import OFF
from quintet.config.dialects.table import Put
from quintet.config.optimizer import AdamWConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig

_PARAMETERS = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "alpha", "rho", "lr_decay", "lambd", "t0")
_PARAMETERS += ("nesterov", "centered", "amsgrad")


def put_optimizer(config: RunConfig, put: Put, section: str, name: str) -> None:
    """The optimizer ``name`` and its parameters, below ``section``."""
    chosen = config.optimizer
    params: dict[str, Any] = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    if isinstance(chosen, AdamWConfig):
        params |= {"betas": list(chosen.betas), "eps": chosen.eps}
    else:
        params |= chosen.arguments
    put(f"{section}.type", name)
    for leaf, value in params.items():
        if leaf in _PARAMETERS:
            put(f"{section}.params.{leaf}", value)


def put_waiting(config: RunConfig, put: Put) -> None:
    """How long processes wait for one another, where that is not our default."""
    seconds = getattr(config.parallel, "timeout_seconds", 600.0)
    if seconds != 600.0 and seconds == int(seconds):
        put(f"{ARGS}.timeout", int(seconds))


def _common(config: RunConfig, put: Put, trainer: str) -> None:
    put("trainer", trainer)
    arguments = getattr(config.trainer, "arguments", {})
    if arguments:
        put(ARGUMENTS, dict(arguments))
    put(f"{ARGS}.save_steps", OFF if config.checkpoint.every is None else config.checkpoint.every)
    put(f"{ARGS}.save_final_checkpoint", config.checkpoint.at_end)
    if config.evaluate.at_end:
        put(f"{ARGS}.do_final_eval", True)
    put(f"{ARGS}.dataloader_shuffle", config.data.shuffle)
    put_waiting(config, put)


def huggingface_back(config: RunConfig, put: Put) -> None:
    """What the Trainer of the transformers library is told."""
    _common(config, put, "huggingface")
    train, batch, chosen = config.train, config.batch, config.optimizer
    if isinstance(chosen, AdamWConfig):
        beta1, beta2 = chosen.betas
        found: dict[str, Any] = {"optim": "adamw", "adam_beta1": beta1, "adam_beta2": beta2, "adam_epsilon": chosen.eps}
    else:
        found = {"optim": chosen.name}
    found |= {"learning_rate": chosen.lr, "weight_decay": chosen.weight_decay}
    if isinstance(config.schedule, TransformersScheduleConfig):
        warmup = config.schedule.warmup_steps
        found |= {"lr_scheduler_type": config.schedule.name, "lr_scheduler_kwargs": dict(config.schedule.arguments)}
        found["warmup_steps" if isinstance(warmup, int) else "warmup_ratio"] = warmup
    found |= {
        "per_device_train_batch_size": batch.micro_batch_size,
        "gradient_accumulation_steps": config.passes_each,
        "per_device_eval_batch_size": config.evaluate.batch_size,
        "max_grad_norm": train.clip_norm or 0.0,
        "logging_steps": train.log_every,
        "label_smoothing_factor": config.loss.label_smoothing,
        "eval_on_start": config.evaluate.at_start,
        "save_total_limit": config.checkpoint.keep,
        "eval_strategy": "no" if config.evaluate.every is None else "steps",
        "eval_steps": config.evaluate.every,
    }
    found |= {"max_steps": train.steps} if train.steps is not None else {"num_train_epochs": train.epochs}
    if train.precision in ("bf16", "fp16"):
        found[train.precision] = True
    for leaf, value in found.items():
        if value is not None:
            put(f"{ARGS}.{leaf}", value)


def lightning_back(config: RunConfig, put: Put) -> None:
    """What the Trainer of Lightning is told, and PhyAGI's module for it."""
    _common(config, put, "lightning")
    train, batch = config.train, config.batch
    names = {ours: theirs for theirs, ours in TORCH.items()}
    chosen = config.optimizer
    adamw = isinstance(chosen, AdamWConfig)
    put_optimizer(config, put, f"{MODULE}.optimizer", "adamw" if adamw else names.get(chosen.name, chosen.name))
    if isinstance(config.schedule, TorchScheduleConfig | DeepSpeedScheduleConfig):
        schedules = {ours: theirs for theirs, ours in (TORCH_SCHEDULES | OWN_SCHEDULES).items()}
        put(f"{MODULE}.scheduler.type", schedules.get(config.schedule.name, config.schedule.name))
        put(f"{MODULE}.scheduler.params", dict(config.schedule.arguments))
    put(f"{ARGS}.train_micro_batch_size_per_gpu", batch.micro_batch_size)
    every = config.evaluate.every
    if isinstance(every, float):
        every = every * train.epochs if train.epochs and train.steps is None else None
    elif every is not None:
        every *= config.passes_each
    samples = config.evaluate.samples
    found: dict[str, Any] = {
        "accumulate_grad_batches": config.passes_each,
        "gradient_clip_val": train.clip_norm,
        "log_every_n_steps": train.log_every,
        "precision": train.precision if train.precision != "auto" else None,
        "accelerator": train.device,
        "max_epochs": train.epochs,
        "max_steps": train.steps,
        "val_check_interval": every,
        "limit_val_batches": None if samples is None else samples // batch.micro_batch_size,
    }
    for leaf, value in found.items():
        if value is not None:
            put(f"{PL}.{leaf}", value)
