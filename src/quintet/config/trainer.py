"""The kinds of `trainer`: whose loop takes the steps, and the arguments that it cannot have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

# Arguments of the library for which the run file has a key.
_TRANSFORMERS = {
    "output_dir": "runs_dir",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "auto_find_batch_size": "train.micro_batch_size",
    "max_grad_norm": "train.clip_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "bf16_full_eval": "train.precision",
    "fp16_full_eval": "train.precision",
    "torch_compile": "train.compile",
    "torch_compile_backend": "train.compile",
    "torch_compile_mode": "train.compile",
    "use_cpu": "train.device",
    "seed": "seed",
    "data_seed": "seed",
    "run_name": "name",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "optim": "optimizer.kind",
    "optim_args": "optimizer",
    "optim_target_modules": "optimizer",
    "lr_scheduler_type": "schedule.kind",
    "lr_scheduler_kwargs": "schedule",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_steps",
    "label_smoothing_factor": "loss.label_smoothing",
    "eval_strategy": "evaluate.every",
    "eval_steps": "evaluate.every",
    "eval_delay": "evaluate.every",
    "eval_on_start": "evaluate.every",
    "do_eval": "evaluate.every",
    "per_device_eval_batch_size": "evaluate.batch_size",
    "load_best_model_at_end": "checkpoint.keep_best",
    "metric_for_best_model": "checkpoint.keep_best",
    "resume_from_checkpoint": "name",
    "deepspeed": "parallel",
    "fsdp": "parallel",
    "fsdp_config": "parallel",
    "accelerator_config": "parallel",
    "parallelism_config": "parallel",
    "train_sampling_strategy": "data",
    "dataloader_num_workers": "data",
    "dataloader_drop_last": "data",
}
_LIGHTNING = {
    "max_steps": "train.steps",
    "min_steps": "train.steps",
    "max_epochs": "train.epochs",
    "min_epochs": "train.epochs",
    "max_time": "train.steps",
    "fast_dev_run": "train.steps",
    "limit_train_batches": "train.steps",
    "overfit_batches": "data",
    "accumulate_grad_batches": "train.accumulation",
    "gradient_clip_val": "train.clip_norm",
    "gradient_clip_algorithm": "train.clip_norm",
    "precision": "train.precision",
    "accelerator": "train.device",
    "devices": "parallel",
    "strategy": "parallel",
    "num_nodes": "parallel",
    "sync_batchnorm": "parallel",
    "use_distributed_sampler": "data",
    "reload_dataloaders_every_n_epochs": "data",
    "val_check_interval": "evaluate.every",
    "check_val_every_n_epoch": "evaluate.every",
    "num_sanity_val_steps": "evaluate.every",
    "limit_val_batches": "evaluate.samples",
}
# Arguments that cannot apply, with the reason.
_FOREIGN_MODEL = "applies only to models that the library builds"
_TRANSFORMERS_REFUSED = {
    "gradient_checkpointing": _FOREIGN_MODEL,
    "gradient_checkpointing_kwargs": _FOREIGN_MODEL,
    "activation_checkpointing": _FOREIGN_MODEL,
    "activation_checkpointing_kwargs": _FOREIGN_MODEL,
    "use_liger_kernel": _FOREIGN_MODEL,
    "liger_kernel_config": _FOREIGN_MODEL,
    "neftune_noise_alpha": _FOREIGN_MODEL,
    "push_to_hub": "would push only what Trainer itself saves; use `quintet export`",
}
_LIGHTNING_REFUSED = {
    "callbacks": "takes objects, which a run file cannot hold",
    "plugins": "takes objects, which a run file cannot hold",
    "deterministic": "is always on: a run is continued bit for bit",
    "barebones": "switches off callbacks, by which Quintet saves and validates",
}


class QuintetTrainerConfig(ConfigSection):
    """Quintet's own loop."""

    kind: Literal["quintet"] = key("quintet", "Quintet's own loop")


class TransformersTrainerConfig(ConfigSection):
    """`Trainer` of the transformers library, with Quintet's model, batches, optimizer and callbacks."""

    kind: Literal["transformers"] = key(
        ..., "`Trainer` of the transformers library (needs `pip install 'quintet[hf]'`)"
    )
    arguments: dict[str, Any] = key({}, "further arguments of transformers.TrainingArguments, by name")


class LightningTrainerConfig(ConfigSection):
    """`Trainer` of Lightning, with Quintet's model, batches, optimizer and callbacks."""

    kind: Literal["lightning"] = key(..., "`Trainer` of Lightning (needs `pip install 'quintet[lightning]'`)")
    arguments: dict[str, Any] = key({}, "further arguments of lightning.pytorch.Trainer, by name")


TrainerConfig = Annotated[
    QuintetTrainerConfig | TransformersTrainerConfig | LightningTrainerConfig, Field(discriminator="kind")
]


def trainer_errors(trainer: TrainerConfig, sections: Mapping[str, Any]) -> ConfigErrors:
    """Yield an error for each argument of ``trainer`` that cannot apply, or that contradicts a key of ``sections``, the
    sections of the run file without mistakes."""
    if isinstance(trainer, QuintetTrainerConfig):
        return
    keys, refused = _tables(trainer)
    for name, value in trainer.arguments.items():
        at = f"trainer.arguments.{name}"
        if name in refused:
            yield config_error(at, f"{refused[name]}; remove it")
        elif name in keys and keys[name].partition(".")[0] in sections and value != _value(sections, keys[name]):
            yield config_error(at, f"{value!r} is not what the run file says; set {keys[name]} instead")


def own_arguments(trainer: TrainerConfig) -> dict[str, Any]:
    """Return the arguments for which the run file has no key."""
    if isinstance(trainer, QuintetTrainerConfig):
        return {}
    keys, _ = _tables(trainer)
    return {name: value for name, value in trainer.arguments.items() if name not in keys}


def _tables(trainer: TrainerConfig) -> tuple[dict[str, str], dict[str, str]]:
    if trainer.kind == "transformers":
        return _TRANSFORMERS, _TRANSFORMERS_REFUSED
    return _LIGHTNING, _LIGHTNING_REFUSED


def _value(sections: Mapping[str, Any], path: str) -> Any:
    """Return the value at the key ``path`` of ``sections``; those of the batch may follow from other keys."""
    section, _, name = path.partition(".")
    if name in ("micro_batch_size", "accumulation") and "data" in sections:
        return getattr(sections["train"].batch(sections["data"].sequence_length), name)
    return getattr(sections[section], name, None) if name else sections[section]
