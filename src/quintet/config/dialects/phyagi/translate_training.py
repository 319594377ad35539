"""Rules for PhyAGI's training arguments, by trainer: its own around DeepSpeed, and the Trainers of the transformers
library and of Lightning."""

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.schema import File
from quintet.config.dialects.phyagi.schema_ds_config import OptimizerParams
from quintet.config.dialects.phyagi.values import (
    ADAMW,
    ARGS,
    ARGUMENTS,
    DEFAULT_ADAMW,
    DEFAULT_BATCH,
    DEFAULT_MICRO_BATCH,
    DEFAULT_SCHEDULE,
    DS,
    MODULE,
    OWN_SCHEDULES,
    PL,
    STRATEGIES,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULES,
    ZERO_ONLY,
)
from quintet.config.keypath import is_sequence, path_of, show
from quintet.config.provenance import Origin, origin_of
from quintet.config.train import fraction_of


def _set_precision(
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


def _set_length(theirs: File, native: NativeBuilder) -> None:
    """Set the steps if max_steps gives them, else the epochs."""
    args = theirs.training_args
    if args.max_steps < 0:
        native.set("train.epochs", args.num_train_epochs, f"{ARGS}.num_train_epochs")
        return
    _refuse_no_steps(native, f"{ARGS}.max_steps", args.max_steps)
    native.set("train.steps", args.max_steps, f"{ARGS}.max_steps")


def _refuse_no_steps(native: NativeBuilder, key: str, steps: int | None) -> None:
    """Refuse 0 steps."""
    if steps == 0:
        native.refuse(key, "0 trains nothing; give a number of steps, or -1 for whole epochs")


def _set_batch_per_device(native: NativeBuilder, *keys: str) -> None:
    """Set the samples of a device in each step, passes × samples of a pass, for which ``keys`` are the reason."""
    samples = native.get("train.micro_batch_size") * native.get("train.accumulation")
    native.set("train.batch_size_per_device", samples, *keys)


def _set_evaluation_size(theirs: File, native: NativeBuilder, key: str, samples: int | None) -> None:
    """Validate on ``samples`` of each dataset, all if None; datasets that are joined count as one."""
    native.set("evaluate.samples", samples, key)
    if samples is not None and theirs.eval_dataset_concat is None:
        native.set("evaluate.samples_each", True, key)


def _set_optimizer(
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
        if name is None and leaf == "amsgrad":
            if params.amsgrad:
                native.refuse(key, "is refused by DeepSpeed's AdamW, unless torch_adam is true; set it to false")
        elif name is None:
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
    _set_precision(theirs, native, flags, default="fp32" if has_config else "auto")
    if has_config:
        _optimizer(theirs, native)
        _schedule(theirs, native)
    else:
        native.set("optimizer", dict(DEFAULT_ADAMW), f"{DS}.optimizer.type")
        native.set("schedule", dict(DEFAULT_SCHEDULE), f"{DS}.scheduler.type")
    _batch(theirs, native, has_config)
    native.set("train.clip_norm", config.gradient_clipping or None, f"{DS}.gradient_clipping")
    native.set("checkpoint.keep", None)
    _set_length(theirs, native)
    if args.do_eval:
        native.set("evaluate.every", args.eval_steps, f"{ARGS}.eval_steps")
    else:
        native.set("evaluate.every", None, f"{ARGS}.do_eval")
    native.set("evaluate.at_end", args.do_eval and args.do_final_eval, f"{ARGS}.do_final_eval")
    batch = native.get("train.batch_size") or native.get("train.batch_size_per_device", 1)
    samples = None if args.eval_max_steps is None else args.eval_max_steps * batch
    _set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", samples)


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
    name, params, keys = optimizer.type or "AdamW", optimizer.params, (f"{section}.type",)
    if name.lower() in ("adamw", "adam"):  # DeepSpeed's Adam is AdamW, unless adam_w_mode is false
        keys = (*keys, f"{section}.params.adam_w_mode")
        if params.adam_w_mode is False:
            name = "Adam" if name.lower() == "adamw" else name
        else:
            name = "AdamW" if params.amsgrad and params.torch_adam else None
    _set_optimizer(native, f"{section}.params", params, name, keys)


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


def huggingface_rules(theirs: File, native: NativeBuilder) -> None:
    """Set training by the transformers library's Trainer."""
    args = theirs.training_args
    _pass_on(theirs, native, "transformers", ARGS)
    if not native.has(f"{ARGS}.logging_steps"):
        native.set("train.log_every", 500, f"{ARGS}.logging_steps")
    native.set("optimizer.decay", "matrices")
    if args.optim == "adamw":
        native.set("optimizer.kind", "adamw", f"{ARGS}.optim")
        native.set("optimizer.betas", [args.adam_beta1, args.adam_beta2], f"{ARGS}.adam_beta1", f"{ARGS}.adam_beta2")
        native.set("optimizer.eps", args.adam_epsilon, f"{ARGS}.adam_epsilon")
    else:
        native.set("optimizer.kind", "torch", f"{ARGS}.optim")
        native.set("optimizer.name", args.optim, f"{ARGS}.optim")
    native.set("schedule.kind", "transformers", f"{ARGS}.lr_scheduler_type")
    if args.warmup_steps:
        native.set("schedule.warmup_steps", args.warmup_steps, f"{ARGS}.warmup_steps")
    elif args.warmup_ratio:
        native.set("schedule.warmup_steps", args.warmup_ratio, f"{ARGS}.warmup_ratio")
    _set_batch_per_device(native, f"{ARGS}.per_device_train_batch_size", f"{ARGS}.gradient_accumulation_steps")
    native.set("train.clip_norm", args.max_grad_norm or None, f"{ARGS}.max_grad_norm")
    _set_precision(theirs, native, {f"{ARGS}.bf16": args.bf16, f"{ARGS}.fp16": args.fp16})
    if args.torch_compile is not None:
        native.set("train.compile", args.torch_compile, f"{ARGS}.torch_compile")
    if args.use_cpu:
        native.set("train.device", "cpu", f"{ARGS}.use_cpu")
    _set_length(theirs, native)
    if args.max_steps < 0 and not native.has(f"{ARGS}.num_train_epochs"):
        native.set("train.epochs", 3.0, f"{ARGS}.num_train_epochs")
    _huggingface_periods(theirs, native)


def _huggingface_periods(theirs: File, native: NativeBuilder) -> None:
    """Set when to validate and when to save: by steps, by epochs, or never."""
    args, every, reason = theirs.training_args, None, f"{ARGS}.eval_strategy"
    if args.eval_strategy == "epoch":
        every = _epochs_of_run(native, 1.0, reason)
    elif args.eval_strategy == "steps" and not args.do_eval:
        reason = f"{ARGS}.do_eval"
    elif args.eval_strategy == "steps" and native.has(f"{ARGS}.eval_steps"):
        every, reason = args.eval_steps, f"{ARGS}.eval_steps"
    elif args.eval_strategy == "steps":
        every, reason = native.get("train.log_every"), f"{ARGS}.logging_steps"
    native.set("evaluate.every", every, reason)
    native.set("evaluate.at_end", args.do_final_eval, f"{ARGS}.do_final_eval")
    samples = None if args.eval_max_steps is None else args.eval_max_steps * native.get("evaluate.batch_size")
    _set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", samples)
    if args.save_strategy != "steps":
        native.set("checkpoint.every", None, f"{ARGS}.save_strategy")
    if args.save_strategy == "epoch":
        native.set("checkpoint.every_epochs", 1.0, f"{ARGS}.save_strategy")
    if not native.has(f"{ARGS}.save_final_checkpoint"):
        native.set("checkpoint.at_end", args.save_strategy != "no", f"{ARGS}.save_final_checkpoint")
    if args.save_total_limit is None:
        native.set("checkpoint.keep", None, f"{ARGS}.save_total_limit")


def _epochs_of_run(native: NativeBuilder, epochs: float, key: str) -> float | None:
    """Return ``epochs`` as a fraction of the run; refuse ``key`` if the run's length is in steps."""
    run = native.get("train.epochs")
    if run is None or native.get("train.steps") is not None:
        native.refuse(key, "counts epochs, and max_steps sets the length of the run; give a number of steps")
        return None
    return fraction_of(epochs, run)


def lightning_rules(theirs: File, native: NativeBuilder) -> None:
    """Set training by Lightning's Trainer, or by Quintet's own loop if there is a strategy."""
    trainer = theirs.training_args.trainer
    if theirs.training_args.strategy.type in (None, "auto"):
        _pass_on(theirs, native, "lightning", PL)
    _strategy(theirs, native)
    _set_batch_per_device(native, f"{ARGS}.train_micro_batch_size_per_gpu", f"{PL}.accumulate_grad_batches")
    native.set("train.clip_norm", trainer.gradient_clip_val or None, f"{PL}.gradient_clip_val")
    if trainer.precision is None:
        _set_precision(theirs, native, {})
    native.set("train.log_every", trainer.log_every_n_steps, f"{PL}.log_every_n_steps")
    if native.has(f"{ARGS}.logging_steps"):
        native.say(f"{ARGS}.logging_steps: not used, because Lightning logs as {PL}.log_every_n_steps says")
    native.set("checkpoint.keep", None)
    _lightning_length(theirs, native)
    _lightning_optimizer(theirs, native)
    _lightning_schedule(theirs, native)
    _lightning_evaluation(theirs, native)


def _strategy(theirs: File, native: NativeBuilder) -> None:
    """Set how devices share the work."""
    section, strategy = f"{ARGS}.strategy", theirs.training_args.strategy
    parallel = STRATEGIES[strategy.type or "auto"]
    if parallel:
        native.set("parallel", dict(parallel), f"{section}.type")
        if native.has(ARGUMENTS):
            message = f"is for Lightning's loop, and {section}.type: {strategy.type} trains in Quintet's; keep one"
            native.refuse(ARGUMENTS, message)
    for name, enabled, path in (
        ("fsdp_cpu_offload", strategy.fsdp_cpu_offload, "parallel.offload"),
        ("fsdp_compile", strategy.fsdp_compile, "train.compile"),
    ):
        if enabled and parallel.get("kind") == "fsdp":
            native.set(path, True, f"{section}.{name}")
        elif enabled:
            native.say(f"{section}.{name}: not used, because it belongs to strategy.type: dctp")
    if strategy.activation_checkpointing:
        native.set("train.activation_checkpointing", 1, f"{section}.activation_checkpointing")


def _lightning_length(theirs: File, native: NativeBuilder) -> None:
    """Set steps and epochs, of which the first to be reached ends the run; 1000 epochs by default, as in Lightning."""
    steps, epochs = theirs.training_args.trainer.max_steps, theirs.training_args.trainer.max_epochs
    _refuse_no_steps(native, f"{PL}.max_steps", steps)
    has_steps = steps is not None and steps > 0
    if has_steps:
        native.set("train.steps", steps, f"{PL}.max_steps")
    if epochs is not None and epochs > 0:
        native.set("train.epochs", epochs, f"{PL}.max_epochs")
    elif not has_steps:
        if epochs is not None:
            native.refuse(f"{PL}.max_epochs", f"{epochs} sets no end; give max_steps, or a number of epochs")
        native.set("train.epochs", 1000, f"{PL}.max_epochs")


def _lightning_optimizer(theirs: File, native: NativeBuilder) -> None:
    section, optimizer = f"{MODULE}.optimizer", theirs.training_args.lightning_module.optimizer
    name, keys = optimizer.type, (f"{section}.type",)
    if name == "adamw":  # the section of kind adamw has no amsgrad, torch's class has
        adamw = "AdamW" if optimizer.params.amsgrad else None
        _set_optimizer(native, f"{section}.params", optimizer.params, adamw, keys, weight_decay=0.01)
    elif name in TORCH_OPTIMIZERS:
        _set_optimizer(native, f"{section}.params", optimizer.params, TORCH_OPTIMIZERS[name], keys)
    else:
        native.refuse(f"{section}.type", f"must be one of adamw, {', '.join(TORCH_OPTIMIZERS)}, and not {name!r}")


def _lightning_schedule(theirs: File, native: NativeBuilder) -> None:
    section, schedule = f"{MODULE}.scheduler", theirs.training_args.lightning_module.scheduler
    names = TORCH_SCHEDULES | OWN_SCHEDULES
    if schedule.type is None:
        native.set("schedule", {"kind": "constant"}, f"{section}.type")
    elif schedule.type in names:
        native.set("schedule.kind", "torch" if schedule.type in TORCH_SCHEDULES else "deepspeed", f"{section}.type")
        native.set("schedule.name", names[schedule.type], f"{section}.type")
        native.set("schedule.arguments", dict(schedule.params or {}), f"{section}.params")
    else:
        native.refuse(f"{section}.type", f"must be one of {', '.join(names)}, and not {schedule.type!r}")


def _lightning_evaluation(theirs: File, native: NativeBuilder) -> None:
    """Set when to validate, after a number of passes, part of an epoch or whole epochs, and on how many samples."""
    interval_key, epochs_key, limit_key = (
        f"{PL}.{name}" for name in ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")
    )
    trainer, passes = theirs.training_args.trainer, native.get("train.accumulation")
    interval, batches = trainer.val_check_interval, trainer.limit_val_batches
    every, reason = None, interval_key if native.has(interval_key) else epochs_key
    at_end = theirs.training_args.do_final_eval
    if not theirs.training_args.do_eval:
        reason = f"{ARGS}.do_eval"
    elif batches == 0:
        reason = limit_key
    elif not native.get("data.validation_sources"):
        pass
    elif isinstance(interval, int):
        if interval % passes:
            native.refuse(interval_key, f"must be a multiple of the {passes} passes of a step, and not {interval}")
        every = max(1, interval // passes)
    elif native.get("train.steps") is None or native.has(interval_key) or native.has(epochs_key):
        epochs = interval if interval is not None else float(trainer.check_val_every_n_epoch)
        every = _epochs_of_run(native, epochs, reason)
    else:
        at_end = True
        native.say(f"{interval_key}: is not given, and the run counts steps: validation is after the last step")
    native.set("evaluate.every", every, reason)
    native.set("evaluate.at_end", at_end, f"{ARGS}.do_final_eval")
    counted = isinstance(batches, int) and batches > 0
    samples = batches * native.get("train.micro_batch_size") if counted else None
    _set_evaluation_size(theirs, native, limit_key, samples)


def _pass_on(theirs: File, native: NativeBuilder, kind: str, section: str) -> None:
    """Set the trainer of another library, and its own arguments, each with its line in ``section``."""
    native.set("trainer.kind", kind, "trainer")
    for name, value in (theirs.training_args.arguments or {}).items():
        native.set(f"trainer.arguments.{name}", value, ARGUMENTS)
        origin = origin_of((*path_of(ARGUMENTS), name), native.given.document.provenance)
        native.provenance[("trainer", "arguments", name)] = Origin(origin.file, origin.line, f"{section}.{name}")
