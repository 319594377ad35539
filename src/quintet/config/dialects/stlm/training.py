"""Rules for how STLM trains and measures: optimizer, learning rate, validations and benchmarks; and the way back."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.evaluation import measurements
from quintet.config.dialects.stlm.schema import File
from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig


def optimizer(theirs: File, native: NativeBuilder) -> None:
    optimizer, key, path = theirs.trainer.optimizer, "trainer.optimizer.optimizer_name", "trainer.optimizer.params"
    own = optimizer.optimizer_name == "nanoGPTadamW"
    name = "AdamW" if own else optimizer.optimizer_name
    lr, decay, *betas = (f"trainer.optimizer.{name}" for name in ("lr", "weight_decay", "beta1", "beta2"))
    native.set("train.clip_norm", optimizer.grad_clip or None, "trainer.optimizer.grad_clip")
    native.set("optimizer.decay", "matrices" if own else "all", key)
    native.set("optimizer.lr", optimizer.lr, lr)
    native.set("optimizer.weight_decay", optimizer.weight_decay, decay)
    if optimizer.params is None and name == "AdamW":
        native.set("optimizer.kind", "adamw", key)
        native.set("optimizer.betas", [optimizer.beta1, optimizer.beta2], *betas)
        return
    native.set("optimizer.kind", "torch", key)
    native.set("optimizer.name", name, key)
    if optimizer.params is None:
        if any(map(native.has, betas)):
            native.set("optimizer.arguments.betas", [optimizer.beta1, optimizer.beta2], *betas)
        return
    for flat in filter(native.has, (lr, decay, *betas)):
        native.refuse(flat, "stands beside params; put it into them")
    arguments = dict(optimizer.params)  # what they do not say is as the class has it
    native.set("optimizer.lr", arguments.pop("lr", 1e-3), path)
    native.set("optimizer.weight_decay", arguments.pop("weight_decay", 0.01 if name == "AdamW" else 0.0), path)
    if arguments:
        native.set("optimizer.arguments", arguments, path)


def schedule(theirs: File, native: NativeBuilder) -> None:
    trainer, key, path = theirs.trainer, "trainer.lr_scheduler.name", "trainer.lr_scheduler.params"
    kind, params = trainer.lr_scheduler.name, trainer.lr_scheduler.params
    warmup, warming = _warmup(theirs, native)
    if kind not in ("cosine", "constant"):
        arguments = dict(params or {})
        if "warmup_steps" in arguments:
            warmup, warming = arguments.pop("warmup_steps"), path
        arguments.pop("verbose", None)
        native.set("schedule.kind", "torch", key)
        native.set("schedule.name", kind, key)
        native.set("schedule.warmup_steps", warmup, warming)
        native.set("schedule.arguments", arguments, path)
        return
    if params:
        native.refuse(path, f"are for PyTorch's schedulers, and the scheduler is {kind}")
    if kind == "constant":
        native.set("schedule", {"kind": "constant"}, key)
        if warmup:
            native.say("trainer.warmup_iters: lr_scheduler: constant has no warm-up; decay_lr: false has one")
        return
    native.set("schedule.kind", "cosine" if trainer.decay_lr else "constant", "trainer.decay_lr", key)
    native.set("schedule.warmup_steps", warmup, warming)
    native.set("schedule.first", 0, key)
    if trainer.decay_lr:
        native.set("schedule.min_lr", trainer.optimizer.min_lr, "trainer.optimizer.min_lr")
        decay = "max_iters" if trainer.lr_decay_iters is None else "lr_decay_iters"
        native.set("schedule.decay_steps", warmup + getattr(trainer, decay), f"trainer.{decay}", warming)


# By kind: the native keys, and those of STLM that say them.
_DROPOUT_KEYS = {
    "constant": {"rate": "dropout"},
    "linear": {
        "start": "start_dropout_p",
        "end": "end_dropout_p",
        "first_step": "start_iter",
        "last_step": "end_iter",
    },
    "triangle": {
        "low": "dropout_trough",
        "high": "dropout_peak",
        "steps": "num_iterations",
        "cycles": "num_cycles",
    },
}


def dropout_schedule(theirs: File, native: NativeBuilder) -> None:
    """Set the dropout schedule from the keys of its kind; those of other kinds beside them, which STLM does not read,
    are named in notes."""
    section = "trainer.dropout_scheduler"
    kind = theirs.trainer.dropout_scheduler.dropout_type
    if kind is None:
        return
    native.clear("dropout_schedule")
    native.set("dropout_schedule.kind", kind, f"{section}.dropout_type")
    if kind != "constant":
        native.set("dropout_schedule.first", 0, f"{section}.dropout_type")
    for owner, names in _DROPOUT_KEYS.items():
        for path, name in names.items():
            if not native.has(f"{section}.{name}"):
                continue
            value = getattr(theirs.trainer.dropout_scheduler, name)
            if owner == kind:
                native.set(f"dropout_schedule.{path}", value, f"{section}.{name}")
            elif value is not None:
                native.say(f"{section}.{name}: is of dropout_type {owner}; STLM does not read it with {kind}")


def _warmup(theirs: File, native: NativeBuilder) -> tuple[int, str]:
    """Its steps, and the key that says them. The oldest files have them a second time beside the optimizer, where STLM
    never read them."""
    read, unread = theirs.trainer.warmup_iters, theirs.trainer.optimizer.warmup_iters
    if read is None:
        return (0, "trainer.warmup_iters") if unread is None else (unread, "trainer.optimizer.warmup_iters")
    if unread not in (None, read):
        native.say(f"trainer.optimizer.warmup_iters: STLM reads the {read} of trainer.warmup_iters")
    return read, "trainer.warmup_iters"


def rhythm(theirs: File, native: NativeBuilder) -> None:
    """Validations, what is measured with each beside the loss, and checkpoints."""
    trainer, section = theirs.trainer, theirs.trainer.eval
    path, other = "trainer.eval.dataset_loss_eval_iters", "trainer.eval.val_loss_iters"
    count, unread = section.dataset_loss_eval_iters, section.val_loss_iters
    if unread is not None and not native.has(path):
        count, path = unread, other
    elif unread not in (None, count):
        native.say(f"{other}: a validation reads {count} micro-batches, as eval_iters says, and STLM reads no other")
    native.set("evaluate.samples", count * trainer.batch_size, path, "trainer.batch_size")
    validates = trainer.run_eval is not False
    native.set("evaluate.at_start", validates, "trainer.run_eval", "trainer.eval_interval")
    native.set("evaluate.at_end", False, "trainer.eval_interval")
    if trainer.trainer_type == "mock_trainer":
        native.set("evaluate.only", True, "trainer.trainer_type")
    if validates:
        measurements(section, trainer.eval_interval, native.get("loss.kind") == "masked", native)
    else:
        native.set("evaluate.every", None, "trainer.run_eval")
    native.set("sample.prompts", [])
    native.set("checkpoint.at_end", True, "trainer.checkpoint_interval")
    native.set("checkpoint.keep", None, "trainer.checkpoint_interval")
    native.set("checkpoint.keep_best", False, "trainer.checkpoint_interval")


def optimizer_back(config: RunConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    own = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if not isinstance(optimizer, AdamWConfig):
        params = own | optimizer.arguments
        return {"trainer.optimizer.optimizer_name": optimizer.name, "trainer.optimizer.params": params}
    own |= {"beta1": optimizer.betas[0], "beta2": optimizer.betas[1]}
    name = "AdamW" if optimizer.decay == "all" else "nanoGPTadamW"
    return {f"trainer.optimizer.{key}": value for key, value in (own | {"optimizer_name": name}).items()}


def schedule_back(config: RunConfig) -> dict[str, Any]:
    schedule, warmup = config.schedule, getattr(config.schedule, "warmup_steps", 0)
    if schedule.kind == "torch":
        params = {"warmup_steps": warmup} | schedule.arguments
        return {"trainer.lr_scheduler.name": schedule.name, "trainer.lr_scheduler.params": params}
    values: dict[str, Any] = {}
    if schedule.kind in ("cosine", "constant"):
        values = {"trainer.lr_scheduler.name": "cosine", "trainer.decay_lr": schedule.kind == "cosine"}
        values |= {"trainer.warmup_iters": warmup} if isinstance(warmup, int) else {}
    if schedule.kind == "cosine" and isinstance(warmup, int):
        values["trainer.optimizer.min_lr"] = schedule.min_lr
        last = schedule.decay_steps or config.train.steps
        values["trainer.lr_decay_iters"] = last - warmup if last is not None and last > warmup else None
    return values
