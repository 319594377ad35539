"""Rules for PhyAGI's training arguments, for each of its trainers: its own around DeepSpeed, and the Trainers of
the transformers library and of Lightning."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.arguments import ARGS, ARGUMENTS, DS, MODULE, PL, STRATEGIES
from quintet.config.dialects.phyagi.schema import File
from quintet.config.dialects.phyagi.shape import owner_of, trainer_of
from quintet.config.dialects.phyagi.training import (
    BUILT_IN,
    OWN_SCHEDULES,
    TORCH,
    TORCH_SCHEDULES,
    ZERO_ALONE,
    refuse_no_steps,
    set_batch_of_each,
    set_defaults,
    set_evaluation_size,
    set_folder,
    set_length,
    set_optimizer,
    set_precision,
)
from quintet.config.keypath import path_of, show
from quintet.config.provenance import Origin, origin_of
from quintet.config.train import fraction_of


def training_rules(theirs: File, native: NativeBuilder) -> None:
    """All of training, by the trainer that the file is for."""
    args, trainer = theirs.training_args, trainer_of(native.given.document.values)
    _refuse_others(native, trainer)
    set_folder(theirs, native)
    entries: list[dict[str, Any]] = []
    for kind, wanted in (("mlflow", args.mlflow), ("wandb", args.wandb), ("tensorboard", args.tensorboard)):
        if wanted:
            host = args.wandb_host if kind == "wandb" else None
            entries.append({"kind": kind, **({"arguments": {"settings": {"base_url": host}}} if host else {})})
    if entries:
        native.set("track", entries, *(f"{ARGS}.{entry['kind']}" for entry in entries))
    native.set("sample.prompts", [])
    native.set("checkpoint.keep_best", False)
    {"deepspeed": _deepspeed, "huggingface": _huggingface, "lightning": _lightning}[trainer](theirs, native)
    if args.timeout is not None:
        native.set("parallel.timeout_seconds", float(args.timeout), f"{ARGS}.timeout")
    if not native.get("data.validation_sources"):  # nothing is validated where nothing is held out
        native.set("evaluate.every", None)
        native.set("evaluate.at_end", False)


def _refuse_others(native: NativeBuilder, trainer: str) -> None:
    """Refuse the arguments of another trainer than the file's."""
    own = f"{ARGS}.train_micro_batch_size_per_gpu"
    for key, steps, _ in native.given.items():
        owner = owner_of(key.path)
        if owner not in ("", trainer) and not (key.path == own and trainer == "deepspeed"):
            native.refuse(show(steps), f"is for trainer: {owner}, and this file is for {trainer}; leave it out")
    if trainer == "deepspeed" and native.has(ARGUMENTS):
        native.refuse(ARGUMENTS, "is for trainer: huggingface or lightning; leave it out")
    if trainer == "deepspeed" and native.has(own):
        native.refuse(own, f"stands in ds_config for trainer: deepspeed, as {DS}.train_micro_batch_size_per_gpu")


def _deepspeed(theirs: File, native: NativeBuilder) -> None:
    args, config, has_config = theirs.training_args, theirs.training_args.ds_config, bool(native.within(DS))
    _parallel(theirs, native)
    flags = {f"{DS}.fp16.enabled": config.fp16.enabled, f"{DS}.bf16.enabled": config.bf16.enabled}
    set_precision(theirs, native, flags, automatic=not has_config)
    if has_config:
        kind, section = config.optimizer.type or "AdamW", f"{DS}.optimizer"
        adam, adam_w = kind.lower() in ("adamw", "adam"), config.optimizer.params.adam_w_mode is not False
        name = None if adam and adam_w else "Adam" if kind.lower() == "adamw" else kind
        said = (f"{section}.type", *([f"{section}.params.adam_w_mode"] if adam else []))
        set_optimizer(native, f"{section}.params", config.optimizer.params, name, said)
        _schedule(theirs, native)
    else:
        native.set("optimizer", dict(BUILT_IN["optimizer"]), f"{DS}.optimizer.type")
        native.set("schedule", dict(BUILT_IN["schedule"]), f"{DS}.scheduler.type")
    _batch(theirs, native, has_config)
    native.set("train.clip_norm", config.gradient_clipping or None, f"{DS}.gradient_clipping")
    native.set("checkpoint.keep", None)
    set_length(theirs, native)
    native.set(
        "evaluate.every",
        args.eval_steps if args.do_eval else None,
        f"{ARGS}.eval_steps" if args.do_eval else f"{ARGS}.do_eval",
    )
    native.set("evaluate.at_end", args.do_eval and args.do_final_eval, f"{ARGS}.do_final_eval")
    batches, samples = (
        args.eval_max_steps,
        native.get("train.batch_size") or native.get("train.batch_size_per_device", 1),
    )
    set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", None if batches is None else batches * samples)


def _parallel(theirs: File, native: NativeBuilder) -> None:
    """DeepSpeed's engine for a stage of ZeRO, with what the file says of it; stage 0 is what every strategy does."""
    stage = f"{DS}.zero_optimization.stage"
    given = {show(steps): value for _, steps, value in native.given.items()}
    keys = native.within(f"{DS}.zero_optimization") + [
        key for name in ZERO_ALONE for key in native.within(f"{DS}.{name}") if not key.endswith(".enabled")
    ]
    if not theirs.training_args.ds_config.zero_optimization.stage:
        for key in keys:
            if key != stage:
                native.say(f"{key}: not used, for the stage of ZeRO is 0, and PyTorch alone takes the steps")
        return
    native.set("parallel.kind", "deepspeed", stage)
    for key in (*keys, *(f"{DS}.{name}.enabled" for name in ("fp16", "bf16") if f"{DS}.{name}.enabled" in given)):
        native.set(f"parallel.config.{key.removeprefix(f'{DS}.')}", given[key], key)


def _batch(theirs: File, native: NativeBuilder, has_config: bool) -> None:
    """DeepSpeed's train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × devices, of which
    two say the third: the devices where all are given."""
    batch, micro = f"{DS}.train_batch_size", f"{DS}.train_micro_batch_size_per_gpu"
    accumulation, config = f"{DS}.gradient_accumulation_steps", theirs.training_args.ds_config
    whole, size = config.train_batch_size, config.train_micro_batch_size_per_gpu
    passes = config.gradient_accumulation_steps
    if not has_config:
        whole, size = 1024, 4
    if whole is not None:
        native.set("train.batch_size", whole, batch)
    elif size is not None:
        native.set("train.batch_size_per_device", size * (passes or 1), micro, accumulation)
    else:
        native.refuse(micro, "must be given, or train_batch_size: DeepSpeed takes the batch of a step from them")
        return
    if size is not None:
        native.set("train.micro_batch_size", size, micro)
    if passes is None:
        return
    devices, rest = divmod(whole, (size or 1) * passes) if whole is not None else (1, 0)
    if rest:
        native.refuse(batch, f"{whole} samples are no whole number of devices with {passes} passes of {size or 1}")
    elif devices > 1 and size is not None:
        native.say(
            f"{accumulation}: with {passes} passes of {size} samples {whole} are those of {devices} devices; "
            "on fewer or more it stays, and the passes follow"
        )
    else:
        native.set("train.accumulation", passes, accumulation)


def _schedule(theirs: File, native: NativeBuilder) -> None:
    kind, params, given = f"{DS}.scheduler.type", f"{DS}.scheduler.params", theirs.training_args.ds_config.scheduler
    if given.type is not None:
        native.set("schedule.kind", "deepspeed", kind)
        native.set("schedule.name", given.type, kind)
        native.set("schedule.arguments", dict(given.params or {}), params)
        return
    if given.params:
        native.refuse(params, "says parameters of no schedule; give scheduler.type")
    native.set("schedule", {"kind": "constant"}, kind)


def _huggingface(theirs: File, native: NativeBuilder) -> None:
    """A run in the Trainer of the transformers library; its arguments become our keys where there are such."""
    args = theirs.training_args
    _hand_on(theirs, native, "transformers")
    defaults = {
        "learning_rate": 5e-5,
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 8,
        "eval_on_start": False,
        "logging_steps": 500,
        "save_total_limit": None,
    }
    set_defaults(native, {f"{ARGS}.{name}": value for name, value in defaults.items()})
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
    if args.warmup_steps or args.warmup_ratio:
        said = f"{ARGS}.warmup_steps" if args.warmup_steps else f"{ARGS}.warmup_ratio"
        native.set("schedule.warmup_steps", args.warmup_steps or args.warmup_ratio, said)
    set_batch_of_each(native, f"{ARGS}.per_device_train_batch_size", f"{ARGS}.gradient_accumulation_steps")
    norm = args.max_grad_norm
    native.set("train.clip_norm", 1.0 if norm is None else norm or None, f"{ARGS}.max_grad_norm")
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
    """When to validate and when to save: by steps, by epochs, or not at all."""
    args, every, said = theirs.training_args, None, f"{ARGS}.eval_strategy"
    if args.eval_strategy == "epoch":
        every = _of_the_run(native, 1.0, said)
    elif args.eval_strategy == "steps" and not args.do_eval:
        said = f"{ARGS}.do_eval"
    elif args.eval_strategy == "steps" and native.has(f"{ARGS}.eval_steps"):
        every, said = args.eval_steps, f"{ARGS}.eval_steps"
    elif args.eval_strategy == "steps":
        every, said = native.get("train.log_every"), f"{ARGS}.logging_steps"
    native.set("evaluate.every", every, said)
    native.set("evaluate.at_end", args.do_final_eval, f"{ARGS}.do_final_eval")
    samples = None if args.eval_max_steps is None else args.eval_max_steps * native.get("evaluate.batch_size")
    set_evaluation_size(theirs, native, f"{ARGS}.eval_max_steps", samples)
    saving = args.save_strategy or "steps"
    if saving != "steps":
        native.set("checkpoint.every", None, f"{ARGS}.save_strategy")
    if saving == "epoch":
        native.set("checkpoint.every_epochs", 1.0, f"{ARGS}.save_strategy")
    set_defaults(native, {f"{ARGS}.save_final_checkpoint": saving != "no"})


def _of_the_run(native: NativeBuilder, epochs: float, key: str) -> float | None:
    """``epochs`` as a fraction of the run, which must be counted in epochs itself."""
    run = native.get("train.epochs")
    if run is None or native.get("train.steps") is not None:
        native.refuse(key, "counts epochs, and the run is as long as max_steps says; give a number of steps")
        return None
    return fraction_of(epochs, run)


def _lightning(theirs: File, native: NativeBuilder) -> None:
    """A run in the Trainer of Lightning; its arguments become our keys where there are such."""
    trainer, micro, passes = theirs.training_args.trainer, "train_micro_batch_size_per_gpu", "accumulate_grad_batches"
    if theirs.training_args.strategy.type in (None, "auto"):
        _hand_on(theirs, native, "lightning")
    _lightning_strategy(theirs, native)
    set_defaults(native, {f"{ARGS}.{micro}": 1, f"{PL}.{passes}": 1, f"{PL}.accelerator": "auto"})
    set_batch_of_each(native, f"{ARGS}.{micro}", f"{PL}.{passes}")
    native.set("train.clip_norm", trainer.gradient_clip_val or None, f"{PL}.gradient_clip_val")
    if trainer.precision is None:
        set_precision(theirs, native, {})
    native.set("train.log_every", trainer.log_every_n_steps or 50, f"{PL}.log_every_n_steps")
    if native.has(f"{ARGS}.logging_steps"):
        native.say(f"{ARGS}.logging_steps: not used, for Lightning logs as {PL}.log_every_n_steps says")
    native.set("checkpoint.keep", None)
    _lightning_length(theirs, native)
    _lightning_module(theirs, native)
    _lightning_evaluation(theirs, native)


def _lightning_strategy(theirs: File, native: NativeBuilder) -> None:
    """How devices share the work; with a strategy our own loop trains, since Lightning's takes its steps in one."""
    section, given = f"{ARGS}.strategy", theirs.training_args.strategy
    spread = STRATEGIES[given.type or "auto"]
    if spread:
        native.set("parallel", dict(spread), f"{section}.type")
        if native.has(ARGUMENTS):
            native.refuse(ARGUMENTS, f"is for Lightning's loop, and with {section}.type: {given.type} ours trains")
    for leaf, wanted, path in (
        ("fsdp_cpu_offload", given.fsdp_cpu_offload, "parallel.offload"),
        ("fsdp_compile", given.fsdp_compile, "train.compile"),
    ):
        if wanted and spread.get("kind") == "fsdp":
            native.set(path, True, f"{section}.{leaf}")
        elif wanted:
            native.say(f"{section}.{leaf}: not used, for it belongs to strategy.type: dctp")
    if given.activation_checkpointing:
        native.set("train.activation_checkpointing", 1, f"{section}.activation_checkpointing")


def _lightning_length(theirs: File, native: NativeBuilder) -> None:
    """Steps and epochs, of which the first to end ends the run; 1000 epochs where neither is given, as in Lightning."""
    steps, epochs = theirs.training_args.trainer.max_steps, theirs.training_args.trainer.max_epochs
    refuse_no_steps(native, f"{PL}.max_steps", steps)
    bounded = steps is not None and steps > 0
    if bounded:
        native.set("train.steps", steps, f"{PL}.max_steps")
    if epochs is not None and epochs > 0:
        native.set("train.epochs", epochs, f"{PL}.max_epochs")
    elif not bounded:
        if epochs is not None:
            native.refuse(f"{PL}.max_epochs", f"{epochs} ends never; give max_steps, or a number of epochs")
        native.set("train.epochs", 1000, f"{PL}.max_epochs")


def _lightning_module(theirs: File, native: NativeBuilder) -> None:
    """Optimizer and schedule."""
    section, optimizer = f"{MODULE}.optimizer", theirs.training_args.lightning_module.optimizer
    name = optimizer.type or "adamw"
    if name == "adamw" or name in TORCH:
        # Every class has its own default; 1e-3 is that of most.
        decay = 0.01 if name == "adamw" else 0.0
        set_optimizer(native, f"{section}.params", optimizer.params, TORCH.get(name), (f"{section}.type",), decay)
    else:
        known = ", ".join(("adamw", *TORCH))
        native.refuse(f"{section}.type", f"{name!r} is none of those that there are here: {known}")
    section, schedule = f"{MODULE}.scheduler", theirs.training_args.lightning_module.scheduler
    if schedule.type is None:
        native.set("schedule", {"kind": "constant"}, f"{section}.type")
    elif schedule.type in TORCH_SCHEDULES or schedule.type in OWN_SCHEDULES:
        native.set("schedule.kind", "torch" if schedule.type in TORCH_SCHEDULES else "deepspeed", f"{section}.type")
        native.set("schedule.name", {**TORCH_SCHEDULES, **OWN_SCHEDULES}[schedule.type], f"{section}.type")
        native.set("schedule.arguments", dict(schedule.params or {}), f"{section}.params")
    else:
        known = ", ".join((*TORCH_SCHEDULES, *OWN_SCHEDULES))
        native.refuse(f"{section}.type", f"{schedule.type!r} is none of those that there are here: {known}")


def _lightning_evaluation(theirs: File, native: NativeBuilder) -> None:
    """Validation: every so many passes, or after a part of an epoch, or after whole ones."""
    interval, epochs, limit = (
        f"{PL}.{leaf}" for leaf in ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")
    )
    trainer, passes = theirs.training_args.trainer, native.get("train.accumulation")
    found, batches = trainer.val_check_interval, trainer.limit_val_batches
    every, said = None, interval if native.has(interval) else epochs
    at_end = theirs.training_args.do_final_eval
    if not theirs.training_args.do_eval:
        said = f"{ARGS}.do_eval"
    elif batches == 0:
        said = limit
    elif not native.get("data.validation_sources"):
        pass
    elif isinstance(found, int):
        if found % passes:
            native.refuse(interval, f"{found} passes are no whole number of steps of {passes}; give a multiple")
        every = max(1, found // passes)
    elif native.get("train.steps") is None or native.has(interval) or native.has(epochs):
        part = found if found is not None else float(trainer.check_val_every_n_epoch or 1)
        every = _of_the_run(native, part, said)
    else:
        at_end = True
        native.say(f"{interval}: is not given, and the run is counted in steps: validation is after the last one")
    native.set("evaluate.every", every, said)
    native.set("evaluate.at_end", at_end, f"{ARGS}.do_final_eval")
    counted = isinstance(batches, int) and batches > 0
    samples = batches * native.get("train.micro_batch_size") if counted else None
    set_evaluation_size(theirs, native, limit, samples)


def _hand_on(theirs: File, native: NativeBuilder, kind: str) -> None:
    """The trainer, and the arguments that are its own, each with its line."""
    native.set("trainer.kind", kind, "trainer")
    for name, value in (theirs.training_args.arguments or {}).items():
        native.set(f"trainer.arguments.{name}", value, ARGUMENTS)
        origin = origin_of((*path_of(ARGUMENTS), name), native.given.document.provenance)
        section = PL if kind == "lightning" else ARGS
        native.provenance[("trainer", "arguments", name)] = Origin(origin.file, origin.line, f"{section}.{name}")
