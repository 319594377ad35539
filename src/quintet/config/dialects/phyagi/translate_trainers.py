"""Rules for PhyAGI's training arguments of other libraries: those of the transformers library's Trainer and of
Lightning's."""

from __future__ import annotations

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.schema import File
from quintet.config.dialects.phyagi.translate_training import (
    refuse_no_steps,
    set_batch_per_device,
    set_defaults,
    set_evaluation_size,
    set_length,
    set_optimizer,
    set_precision,
)
from quintet.config.dialects.phyagi.values import (
    ARGS,
    ARGUMENTS,
    MODULE,
    OWN_SCHEDULES,
    PL,
    STRATEGIES,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULES,
)
from quintet.config.keypath import path_of
from quintet.config.provenance import Origin, origin_of
from quintet.config.train import fraction_of

_HF_DEFAULTS = {
    f"{ARGS}.learning_rate": 5e-5,
    f"{ARGS}.weight_decay": 0.0,
    f"{ARGS}.lr_scheduler_type": "linear",
    f"{ARGS}.per_device_train_batch_size": 8,
    f"{ARGS}.gradient_accumulation_steps": 1,
    f"{ARGS}.per_device_eval_batch_size": 8,
    f"{ARGS}.eval_on_start": False,
    f"{ARGS}.logging_steps": 500,
    f"{ARGS}.save_total_limit": None,
}
_LIGHTNING_DEFAULTS = {
    f"{ARGS}.train_micro_batch_size_per_gpu": 1,
    f"{PL}.accumulate_grad_batches": 1,
    f"{PL}.accelerator": "auto",
}


def huggingface_rules(theirs: File, native: NativeBuilder) -> None:
    """Set training by the transformers library's Trainer."""
    args = theirs.training_args
    _pass_on(theirs, native, "transformers", ARGS)
    set_defaults(native, _HF_DEFAULTS)
    native.set("optimizer.decay", "matrices")
    if args.optim in (None, "adamw"):
        native.set("optimizer.kind", "adamw", f"{ARGS}.optim")
        first, second, eps = args.adam_beta1, args.adam_beta2, args.adam_epsilon
        betas = [0.9 if first is None else first, 0.999 if second is None else second]
        native.set("optimizer.betas", betas, f"{ARGS}.adam_beta1", f"{ARGS}.adam_beta2")
        native.set("optimizer.eps", 1e-8 if eps is None else eps, f"{ARGS}.adam_epsilon")
    else:
        native.set("optimizer.kind", "torch", f"{ARGS}.optim")
        native.set("optimizer.name", args.optim, f"{ARGS}.optim")
    native.set("schedule.kind", "transformers", f"{ARGS}.lr_scheduler_type")
    if args.warmup_steps:
        native.set("schedule.warmup_steps", args.warmup_steps, f"{ARGS}.warmup_steps")
    elif args.warmup_ratio:
        native.set("schedule.warmup_steps", args.warmup_ratio, f"{ARGS}.warmup_ratio")
    set_batch_per_device(native, f"{ARGS}.per_device_train_batch_size", f"{ARGS}.gradient_accumulation_steps")
    norm = 1.0 if args.max_grad_norm is None else args.max_grad_norm
    native.set("train.clip_norm", norm or None, f"{ARGS}.max_grad_norm")
    set_precision(theirs, native, {f"{ARGS}.bf16": args.bf16, f"{ARGS}.fp16": args.fp16})
    if args.torch_compile is not None:
        native.set("train.compile", args.torch_compile, f"{ARGS}.torch_compile")
    if args.use_cpu:
        native.set("train.device", "cpu", f"{ARGS}.use_cpu")
    set_length(theirs, native)
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
    set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", samples)
    strategy = args.save_strategy or "steps"
    if strategy != "steps":
        native.set("checkpoint.every", None, f"{ARGS}.save_strategy")
    if strategy == "epoch":
        native.set("checkpoint.every_epochs", 1.0, f"{ARGS}.save_strategy")
    set_defaults(native, {f"{ARGS}.save_final_checkpoint": strategy != "no"})


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
    set_defaults(native, _LIGHTNING_DEFAULTS)
    set_batch_per_device(native, f"{ARGS}.train_micro_batch_size_per_gpu", f"{PL}.accumulate_grad_batches")
    native.set("train.clip_norm", trainer.gradient_clip_val or None, f"{PL}.gradient_clip_val")
    if trainer.precision is None:
        set_precision(theirs, native, {})
    native.set("train.log_every", trainer.log_every_n_steps or 50, f"{PL}.log_every_n_steps")
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
    refuse_no_steps(native, f"{PL}.max_steps", steps)
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
    name = optimizer.type or "adamw"
    if name == "adamw":
        set_optimizer(native, f"{section}.params", optimizer.params, None, (f"{section}.type",), weight_decay=0.01)
    elif name in TORCH_OPTIMIZERS:
        set_optimizer(native, f"{section}.params", optimizer.params, TORCH_OPTIMIZERS[name], (f"{section}.type",))
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
        epochs = interval if interval is not None else float(trainer.check_val_every_n_epoch or 1)
        every = _epochs_of_run(native, epochs, reason)
    else:
        at_end = True
        native.say(f"{interval_key}: is not given, and the run counts steps: validation is after the last step")
    native.set("evaluate.every", every, reason)
    native.set("evaluate.at_end", at_end, f"{ARGS}.do_final_eval")
    counted = isinstance(batches, int) and batches > 0
    samples = batches * native.get("train.micro_batch_size") if counted else None
    set_evaluation_size(theirs, native, limit_key, samples)


def _pass_on(theirs: File, native: NativeBuilder, kind: str, section: str) -> None:
    """Set the trainer of another library, and its own arguments, each with its line in ``section``."""
    native.set("trainer.kind", kind, "trainer")
    for name, value in (theirs.training_args.arguments or {}).items():
        native.set(f"trainer.arguments.{name}", value, ARGUMENTS)
        origin = origin_of((*path_of(ARGUMENTS), name), native.given.document.provenance)
        native.provenance[("trainer", "arguments", name)] = Origin(origin.file, origin.line, f"{section}.{name}")
