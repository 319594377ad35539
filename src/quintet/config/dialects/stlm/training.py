"""Rules for how STLM trains and measures: optimizer, learning rate, validations and benchmarks; and the way back."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.evaluation import measurements
from quintet.config.dialects.stlm.names import OF_CLASSES
from quintet.config.dialects.stlm.schema import File
from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig

_OPTIMIZER = "trainer.optimizer"
_NAME, _FILTER = f"{_OPTIMIZER}.optimizer_name", f"{_OPTIMIZER}.gradient_filter"
_MOMENTUM = ("SGD", "SGDP", "RMSprop", "Shampoo")
_WITHOUT_BETAS = (*_MOMENTUM, "Adadelta", "Adafactor", "Adagrad", "ASGD", "Rprop")
_GROKFAST = {"grokfast_alpha": 0.98, "grokfast_lamb": 2.0, "normalize_lr": False}


def optimizer(theirs: File, native: NativeBuilder) -> None:
    optimizer = theirs.trainer.optimizer
    own = optimizer.optimizer_name == "nanoGPTadamW"
    name = "AdamW" if own else optimizer.optimizer_name
    filtered = optimizer.gradient_filter == "grokfast_ema"
    native.set("train.clip_norm", optimizer.grad_clip or None, f"{_OPTIMIZER}.grad_clip")
    native.set("optimizer.decay", "matrices" if own else "all", _NAME)
    plain = name == "AdamW" and optimizer.params is None and not filtered
    native.set("optimizer.kind", "adamw" if plain else "torch", _NAME)
    if not plain:
        native.set("optimizer.name", "GrokFastAdamW" if filtered else name, _NAME, *[_FILTER] * filtered)
    if filtered and (name != "AdamW" or optimizer.params is not None):
        native.refuse(_FILTER, "is done with AdamW and nanoGPTadamW, without params")
    if optimizer.params is not None:
        _params(optimizer.params, name, native)
        return
    native.set("optimizer.lr", optimizer.lr, f"{_OPTIMIZER}.lr")
    _decay(theirs, name, native)
    betas, keys = _betas(theirs, native)
    if plain:
        native.set("optimizer.betas", betas, *keys)
    elif name in _WITHOUT_BETAS:
        _say_unread(native, f"{name} has no betas; STLM does not read it with {name}", *keys)
    elif filtered or any(map(native.has, keys)):
        native.set("optimizer.arguments.betas", betas, *keys)
    if name == "Shampoo":
        native.say(f"{_NAME}: shampoo of STLM's own code cannot take a step; it is the Shampoo of pytorch_optimizer")
    if name == "AdaBelief":
        native.set("optimizer.arguments.rectify", True, _NAME)
    for argument, value in _GROKFAST.items() if filtered else ():
        native.set(f"optimizer.arguments.{argument}", value, _FILTER)
    if optimizer.momentum is not None and name in _MOMENTUM:
        native.set("optimizer.arguments.momentum", optimizer.momentum, f"{_OPTIMIZER}.momentum")
    else:
        _say_unread(native, f"STLM reads it with {', '.join(_MOMENTUM)} alone", f"{_OPTIMIZER}.momentum")


def _decay(theirs: File, name: str, native: NativeBuilder) -> None:
    """Set the weight decay; a decoupled one of Lion is not times the rate, but is all of it at the highest rate."""
    optimizer, key, decoupled = theirs.trainer.optimizer, f"{_OPTIMIZER}.weight_decay", "decoupled_weight_decay"
    decay, keys = optimizer.weight_decay, [key]
    if name == "Lion" and optimizer.decoupled_weight_decay and optimizer.lr:
        decay, keys = decay / optimizer.lr, [key, f"{_OPTIMIZER}.{decoupled}", f"{_OPTIMIZER}.lr"]
    elif name != "Lion":
        _say_unread(native, "STLM reads it with lion alone", f"{_OPTIMIZER}.{decoupled}")
    if name == "Rprop":
        _say_unread(native, "Rprop has none; STLM does not read it with rprop", key)
        return
    native.set("optimizer.weight_decay", decay, *keys)


def _betas(theirs: File, native: NativeBuilder) -> tuple[list[float], list[str]]:
    """Both betas, and the keys that say them."""
    optimizer, both, each = theirs.trainer.optimizer, f"{_OPTIMIZER}.betas", [f"{_OPTIMIZER}.beta{n}" for n in (1, 2)]
    if optimizer.betas is None:
        return [optimizer.beta1, optimizer.beta2], each
    if any(map(native.has, each)):
        native.refuse(both, "stands beside beta1 and beta2; keep one of them")
    return list(optimizer.betas), [both]


def _say_unread(native: NativeBuilder, why: str, *keys: str) -> None:
    for key in filter(native.has, keys):
        native.say(f"{key}: {why}")


def _params(params: dict[str, Any], name: str, native: NativeBuilder) -> None:
    """Set what ``params`` say to the class ``name``; what they do not say is as the class has it."""
    path, flat = f"{_OPTIMIZER}.params", ("lr", "weight_decay", "beta1", "beta2", "betas", "momentum")
    for key in filter(native.has, (f"{_OPTIMIZER}.{one}" for one in (*flat, "decoupled_weight_decay"))):
        native.refuse(key, "stands beside params; put it into them")
    arguments = dict(params)
    rate, decay = OF_CLASSES.get(name, (1e-3, 0.0))
    native.set("optimizer.lr", arguments.pop("lr", rate), path)
    native.set("optimizer.weight_decay", arguments.pop("weight_decay", decay), path)
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
    native.set("schedule.first", 0, key)
    if warmup > trainer.max_iters:
        _unfinished_warmup(warmup, warming, trainer.max_iters, native)
        return
    native.set("schedule.kind", "cosine" if trainer.decay_lr else "constant", "trainer.decay_lr", key)
    native.set("schedule.warmup_steps", warmup, warming)
    if trainer.decay_lr:
        native.set("schedule.min_lr", trainer.optimizer.min_lr, "trainer.optimizer.min_lr")
        decay = "max_iters" if trainer.lr_decay_iters is None else "lr_decay_iters"
        native.set("schedule.decay_steps", warmup + getattr(trainer, decay), f"trainer.{decay}", warming)


def _unfinished_warmup(warmup: int, warming: str, steps: int, native: NativeBuilder) -> None:
    """Set a warm-up of the whole run, to the rate that one of ``warmup`` steps has after ``steps``."""
    rate = native.get("optimizer.lr") * steps / warmup
    native.set("optimizer.lr", rate, f"{_OPTIMIZER}.lr", warming, "trainer.max_iters")
    native.set("schedule.kind", "constant", warming, "trainer.max_iters")
    native.set("schedule.warmup_steps", steps, warming, "trainer.max_iters")
    native.say(
        f"{warming}: its {warmup} steps are more than the {steps} of the run, in which the learning rate rises to "
        f"{rate:g} and never falls, as in STLM"
    )


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
