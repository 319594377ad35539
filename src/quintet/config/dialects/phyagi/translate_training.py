"""Rules that PhyAGI's trainers share, and those of its own trainer around DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.schema import File
from quintet.config.dialects.phyagi.schema_ds_config import OptimizerParams
from quintet.config.dialects.phyagi.values import (
    ADAMW,
    ARGS,
    DEFAULT_ADAMW,
    DEFAULT_BATCH,
    DEFAULT_MICRO_BATCH,
    DEFAULT_SCHEDULE,
    DS,
    ZERO_ONLY,
)
from quintet.config.keypath import is_sequence, show


def set_defaults(native: NativeBuilder, defaults: Mapping[str, Any]) -> None:
    """Set the trainer's ``defaults`` of the keys that the file does not give."""
    for path, value in defaults.items():
        if not native.has(path):
            native.set(native.given.dialect.key(path).role.to, value, path)


def set_precision(
    theirs: File, native: NativeBuilder, flags: Mapping[str, bool | None], *, default: str = "fp32"
) -> None:
    """Set the precision of the matrix products: by the key of ``flags`` that is true, else by torch_dtype."""
    enabled = [key for key, value in flags.items() if value]
    if len(enabled) > 1:
        native.refuse(enabled[1], f"cannot be on together with {enabled[0]}; set one of the two to false")
    if enabled:
        native.set("train.precision", "bf16" if "bf16" in enabled[0] else "fp16", enabled[0])
    elif theirs.model.torch_dtype is not None:
        native.set("train.precision", theirs.model.torch_dtype, "model.torch_dtype")
    else:
        native.set("train.precision", default, *flags)


def set_length(theirs: File, native: NativeBuilder) -> None:
    """Set the steps if max_steps gives them, else the epochs."""
    args = theirs.training_args
    if args.max_steps < 0:
        native.set("train.epochs", args.num_train_epochs, f"{ARGS}.num_train_epochs")
        return
    refuse_no_steps(native, f"{ARGS}.max_steps", args.max_steps)
    native.set("train.steps", args.max_steps, f"{ARGS}.max_steps")


def refuse_no_steps(native: NativeBuilder, key: str, steps: int | None) -> None:
    """Refuse 0 steps."""
    if steps == 0:
        native.refuse(key, "0 trains nothing; give a number of steps, or -1 for whole epochs")


def set_batch_per_device(native: NativeBuilder, *keys: str) -> None:
    """Set the samples of a device in each step, passes × samples of a pass, for which ``keys`` are the reason."""
    samples = native.get("train.micro_batch_size") * native.get("train.accumulation")
    native.set("train.batch_size_per_device", samples, *keys)


def set_evaluation_size(theirs: File, native: NativeBuilder, key: str, samples: int | None) -> None:
    """Validate on ``samples`` of each dataset, all if None; datasets that are joined count as one."""
    native.set("evaluate.samples", samples, key)
    if samples is not None and theirs.eval_dataset_concat is None:
        native.set("evaluate.samples_each", True, key)


def set_optimizer(
    native: NativeBuilder,
    section: str,
    params: OptimizerParams,
    name: str | None,
    keys: tuple[str, ...],
    weight_decay: float = 0.0,
) -> None:
    """Set AdamW if ``name`` is None, else the class ``name`` of torch.optim, with the ``params`` of ``section``.

    ``keys`` are the reason for the class; ``weight_decay`` is the default.
    """
    native.set("optimizer.kind", "adamw" if name is None else "torch", *keys)
    native.set("optimizer.decay", "all")
    if name is not None:
        native.set("optimizer.name", name, *keys)
        native.set("optimizer.arguments", {}, *keys)
    native_keys = ("lr", "betas", "eps", "weight_decay") if name is None else ("lr", "weight_decay")
    for leaf in native_keys:
        value = getattr(params, leaf)
        default = weight_decay if leaf == "weight_decay" else ADAMW[leaf]
        native.set(f"optimizer.{leaf}", _plain(default if value is None else value), f"{section}.{leaf}")
    for key in native.within(section):
        leaf = key.removeprefix(f"{section}.")
        if leaf in (*native_keys, "adam_w_mode", "torch_adam"):
            continue
        if name is None:
            native.refuse(key, "is no parameter of AdamW; leave it out")
        else:
            native.set(f"optimizer.arguments.{leaf}", _plain(getattr(params, leaf)), key)


def _plain(value: Any) -> Any:
    return list(value) if is_sequence(value) else value


def deepspeed_rules(theirs: File, native: NativeBuilder) -> None:
    """Set training by PhyAGI's own trainer; without a ds_config it has PhyAGI's."""
    args, config, has_config = theirs.training_args, theirs.training_args.ds_config, bool(native.within(DS))
    _zero(theirs, native)
    flags = {f"{DS}.fp16.enabled": config.fp16.enabled, f"{DS}.bf16.enabled": config.bf16.enabled}
    set_precision(theirs, native, flags, default="fp32" if has_config else "auto")
    if has_config:
        _optimizer(theirs, native)
        _schedule(theirs, native)
    else:
        native.set("optimizer", dict(DEFAULT_ADAMW), f"{DS}.optimizer.type")
        native.set("schedule", dict(DEFAULT_SCHEDULE), f"{DS}.scheduler.type")
    _batch(theirs, native, has_config)
    native.set("train.clip_norm", config.gradient_clipping or None, f"{DS}.gradient_clipping")
    native.set("checkpoint.keep", None)
    set_length(theirs, native)
    if args.do_eval:
        native.set("evaluate.every", args.eval_steps, f"{ARGS}.eval_steps")
    else:
        native.set("evaluate.every", None, f"{ARGS}.do_eval")
    native.set("evaluate.at_end", args.do_eval and args.do_final_eval, f"{ARGS}.do_final_eval")
    batch = native.get("train.batch_size") or native.get("train.batch_size_per_device", 1)
    samples = None if args.eval_max_steps is None else args.eval_max_steps * batch
    set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", samples)


def _zero(theirs: File, native: NativeBuilder) -> None:
    """Choose DeepSpeed's engine if there is a stage of ZeRO, and pass on the file's settings of ZeRO."""
    stage = f"{DS}.zero_optimization.stage"
    values = {show(steps): value for _, steps, value in native.given.items()}
    switches = [f"{DS}.{name}.enabled" for name in ("fp16", "bf16")]
    others = [key for name in ZERO_ONLY for key in native.within(f"{DS}.{name}") if key not in switches]
    keys = native.within(f"{DS}.zero_optimization") + others
    if not theirs.training_args.ds_config.zero_optimization.stage:
        for key in keys:
            if key != stage:
                native.say(f"{key}: not used, because the stage of ZeRO is 0, which PyTorch trains without DeepSpeed")
        return
    native.set("parallel.kind", "deepspeed", stage)
    for key in (*keys, *(switch for switch in switches if switch in values)):
        native.set(f"parallel.config.{key.removeprefix(f'{DS}.')}", values[key], key)


def _optimizer(theirs: File, native: NativeBuilder) -> None:
    section, optimizer = f"{DS}.optimizer", theirs.training_args.ds_config.optimizer
    name, keys = optimizer.type or "AdamW", (f"{section}.type",)
    if name.lower() in ("adamw", "adam"):  # DeepSpeed's Adam is AdamW, unless adam_w_mode is false
        keys = (*keys, f"{section}.params.adam_w_mode")
        adam = "Adam" if name.lower() == "adamw" else name
        name = adam if optimizer.params.adam_w_mode is False else None
    set_optimizer(native, f"{section}.params", optimizer.params, name, keys)


def _schedule(theirs: File, native: NativeBuilder) -> None:
    section, schedule = f"{DS}.scheduler", theirs.training_args.ds_config.scheduler
    if schedule.type is not None:
        native.set("schedule.kind", "deepspeed", f"{section}.type")
        native.set("schedule.name", schedule.type, f"{section}.type")
        native.set("schedule.arguments", dict(schedule.params or {}), f"{section}.params")
        return
    if schedule.params:
        native.refuse(f"{section}.params", "belongs to a schedule, and there is none; give scheduler.type")
    native.set("schedule", {"kind": "constant"}, f"{section}.type")


def _batch(theirs: File, native: NativeBuilder, has_config: bool) -> None:
    """Set the batch, of which DeepSpeed has train_batch_size = train_micro_batch_size_per_gpu ×
    gradient_accumulation_steps × devices: two of the three keys, if given, decide the third, and all three decide the
    number of devices."""
    batch_key, micro_key = f"{DS}.train_batch_size", f"{DS}.train_micro_batch_size_per_gpu"
    passes_key, config = f"{DS}.gradient_accumulation_steps", theirs.training_args.ds_config
    batch, micro = config.train_batch_size, config.train_micro_batch_size_per_gpu
    passes = config.gradient_accumulation_steps
    if not has_config:
        batch, micro = DEFAULT_BATCH, DEFAULT_MICRO_BATCH
    if batch is not None:
        native.set("train.batch_size", batch, batch_key)
    elif micro is not None:
        native.set("train.batch_size_per_device", micro * (passes or 1), micro_key, passes_key)
    else:
        native.refuse(micro_key, "must be given, or train_batch_size: DeepSpeed takes the batch of a step from them")
        return
    if micro is not None:
        native.set("train.micro_batch_size", micro, micro_key)
    if passes is None:
        return
    devices, rest = divmod(batch, (micro or 1) * passes) if batch is not None else (1, 0)
    if rest:
        native.refuse(
            batch_key, f"{batch} samples are not a multiple of {passes} passes of {micro or 1}; change one of the three"
        )
    elif devices > 1 and micro is not None:
        native.say(
            f"{passes_key}: with {passes} passes of {micro} samples, a batch of {batch} is for {devices} devices; on "
            "another number of devices the batch stays and the passes change"
        )
    else:
        native.set("train.accumulation", passes, passes_key)
