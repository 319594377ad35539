"""Rules for the optimizer, the learning rate and the dropout of an STLM file."""

from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.values import OPTIMIZER_DEFAULTS
from quintet.config.schedule import ConstantDropoutConfig, LinearDropoutConfig, TriangleDropoutConfig

_OPTIMIZER = "trainer.optimizer"
_NAME, _FILTER = f"{_OPTIMIZER}.optimizer_name", f"{_OPTIMIZER}.gradient_filter"
_MOMENTUM = ("SGD", "SGDP", "RMSprop", "Shampoo")
_WITHOUT_BETAS = (*_MOMENTUM, "Adadelta", "Adafactor", "Adagrad", "ASGD", "Rprop")
_GROKFAST = {"grokfast_alpha": 0.98, "grokfast_lamb": 2.0, "normalize_lr": False}
_INSTEAD_OF_PARAMS = ("lr", "weight_decay", "beta1", "beta2", "betas", "momentum", "decoupled_weight_decay")
_DROPOUTS = {"constant": ConstantDropoutConfig, "linear": LinearDropoutConfig, "triangle": TriangleDropoutConfig}


def set_optimizer(theirs: File, native: NativeBuilder) -> None:
    """Set the optimizer, its learning rate and the bound on the gradient."""
    optimizer = theirs.trainer.optimizer
    nanogpt = optimizer.optimizer_name == "nanoGPTadamW"
    name = "AdamW" if nanogpt else optimizer.optimizer_name
    filtered = optimizer.gradient_filter == "grokfast_ema"
    native.set("train.clip_norm", optimizer.grad_clip or None, f"{_OPTIMIZER}.grad_clip")
    native.set("optimizer.decay", "matrices" if nanogpt else "all", _NAME)
    plain = name == "AdamW" and optimizer.params is None and not filtered
    native.set("optimizer.kind", "adamw" if plain else "torch", _NAME)
    if not plain:
        native.set("optimizer.name", "GrokFastAdamW" if filtered else name, _NAME, *[_FILTER] * filtered)
    if filtered and (name != "AdamW" or optimizer.params is not None):
        native.refuse(_FILTER, "works with AdamW and nanoGPTadamW only, without params")
    if optimizer.params is not None:
        _set_params(optimizer.params, name, native)
        return
    native.set("optimizer.lr", optimizer.lr, f"{_OPTIMIZER}.lr")
    _set_decay(theirs, name, native)
    betas, keys = _betas(theirs, native)
    if plain:
        native.set("optimizer.betas", betas, *keys)
    elif name in _WITHOUT_BETAS:
        _say_unread(native, f"{name} has no betas; STLM does not read it with {name}", *keys)
    elif filtered or any(map(native.has, keys)):
        native.set("optimizer.arguments.betas", betas, *keys)
    if name == "Shampoo":
        native.say(f"{_NAME}: STLM's own shampoo cannot take a step; the Shampoo of pytorch_optimizer is used")
    if name == "AdaBelief":
        native.set("optimizer.arguments.rectify", True, _NAME)
    for argument, value in _GROKFAST.items() if filtered else ():
        native.set(f"optimizer.arguments.{argument}", value, _FILTER)
    if optimizer.momentum is not None and name in _MOMENTUM:
        native.set("optimizer.arguments.momentum", optimizer.momentum, f"{_OPTIMIZER}.momentum")
    else:
        _say_unread(native, f"STLM reads it with {', '.join(_MOMENTUM)} only", f"{_OPTIMIZER}.momentum")


def _set_decay(theirs: File, name: str, native: NativeBuilder) -> None:
    """Set the weight decay. Lion's decoupled one is not multiplied by the rate: at the highest rate all of it acts."""
    optimizer, key, decoupled = theirs.trainer.optimizer, f"{_OPTIMIZER}.weight_decay", "decoupled_weight_decay"
    decay, keys = optimizer.weight_decay, [key]
    if name == "Lion" and optimizer.decoupled_weight_decay and optimizer.lr:
        decay, keys = decay / optimizer.lr, [key, f"{_OPTIMIZER}.{decoupled}", f"{_OPTIMIZER}.lr"]
    elif name != "Lion":
        _say_unread(native, "STLM reads it with lion only", f"{_OPTIMIZER}.{decoupled}")
    if name == "Rprop":
        _say_unread(native, "Rprop has none; STLM does not read it with rprop", key)
        return
    native.set("optimizer.weight_decay", decay, *keys)


def _betas(theirs: File, native: NativeBuilder) -> tuple[list[float], list[str]]:
    """Return both betas, and the keys that give them."""
    optimizer, both, each = theirs.trainer.optimizer, f"{_OPTIMIZER}.betas", [f"{_OPTIMIZER}.beta{n}" for n in (1, 2)]
    if optimizer.betas is None:
        return [optimizer.beta1, optimizer.beta2], each
    if any(map(native.has, each)):
        native.refuse(both, "repeats beta1 and beta2; keep betas or these two")
    return list(optimizer.betas), [both]


def _say_unread(native: NativeBuilder, reason: str, *keys: str) -> None:
    for key in filter(native.has, keys):
        native.say(f"{key}: {reason}")


def _set_params(params: dict[str, Any], name: str, native: NativeBuilder) -> None:
    """Set ``params``, arguments of the class ``name``. What they omit has the default of the class."""
    path = f"{_OPTIMIZER}.params"
    for key in filter(native.has, (f"{_OPTIMIZER}.{other}" for other in _INSTEAD_OF_PARAMS)):
        native.refuse(key, "is not read with params; put it into them")
    arguments = dict(params)
    rate, decay = OPTIMIZER_DEFAULTS.get(name, (1e-3, 0.0))
    native.set("optimizer.lr", arguments.pop("lr", rate), path)
    native.set("optimizer.weight_decay", arguments.pop("weight_decay", decay), path)
    if arguments:
        native.set("optimizer.arguments", arguments, path)


def set_schedule(theirs: File, native: NativeBuilder) -> None:
    """Set the schedule of the learning rate, after the optimizer."""
    trainer, key, path = theirs.trainer, "trainer.lr_scheduler.name", "trainer.lr_scheduler.params"
    kind, params = trainer.lr_scheduler.name, trainer.lr_scheduler.params
    warmup, warmup_key = _warmup(theirs, native)
    if kind not in ("cosine", "constant"):
        arguments = dict(params or {})
        if "warmup_steps" in arguments:
            warmup, warmup_key = arguments.pop("warmup_steps"), path
        arguments.pop("verbose", None)
        native.set("schedule.kind", "torch", key)
        native.set("schedule.name", kind, key)
        native.set("schedule.warmup_steps", warmup, warmup_key)
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
        _set_unfinished_warmup(warmup, warmup_key, trainer.max_iters, native)
        return
    native.set("schedule.kind", "cosine" if trainer.decay_lr else "constant", "trainer.decay_lr", key)
    native.set("schedule.warmup_steps", warmup, warmup_key)
    if trainer.decay_lr:
        native.set("schedule.min_lr", trainer.optimizer.min_lr, "trainer.optimizer.min_lr")
        decay = "max_iters" if trainer.lr_decay_iters is None else "lr_decay_iters"
        native.set("schedule.decay_steps", warmup + getattr(trainer, decay), f"trainer.{decay}", warmup_key)


def _warmup(theirs: File, native: NativeBuilder) -> tuple[int, str]:
    """Return the steps of the warm-up, and the key that gives them.

    The oldest files repeat them in the optimizer's section, which STLM never read.
    """
    read, unread = theirs.trainer.warmup_iters, theirs.trainer.optimizer.warmup_iters
    if read is None:
        return (0, "trainer.warmup_iters") if unread is None else (unread, "trainer.optimizer.warmup_iters")
    if unread not in (None, read):
        native.say(f"trainer.optimizer.warmup_iters: STLM reads the {read} of trainer.warmup_iters")
    return read, "trainer.warmup_iters"


def _set_unfinished_warmup(warmup: int, warmup_key: str, steps: int, native: NativeBuilder) -> None:
    """Set a warm-up of all ``steps``, up to the rate that a warm-up of ``warmup`` steps reaches in them."""
    rate = native.get("optimizer.lr") * steps / warmup
    native.set("optimizer.lr", rate, f"{_OPTIMIZER}.lr", warmup_key, "trainer.max_iters")
    native.set("schedule.kind", "constant", warmup_key, "trainer.max_iters")
    native.set("schedule.warmup_steps", steps, warmup_key, "trainer.max_iters")
    native.say(
        f"{warmup_key}: its {warmup} steps are more than the {steps} of the run, in which the learning rate rises to "
        f"{rate:g} and never falls, as in STLM"
    )


def set_dropout_schedule(theirs: File, native: NativeBuilder) -> None:
    """Set the keys of the dropout schedule's kind again, without those of other kinds, which STLM does not read."""
    kind_key, kind = "trainer.dropout_scheduler.dropout_type", theirs.trainer.dropout_scheduler.dropout_type
    if kind is None:
        return
    native.clear("dropout_schedule")
    native.set("dropout_schedule.kind", kind, kind_key)
    if kind != "constant":
        native.set("dropout_schedule.first", 0, kind_key)
    for key, _, value in native.given.items():
        if not key.role.to.startswith("dropout_schedule.") or key.path == kind_key:
            continue
        if key.role.to.removeprefix("dropout_schedule.") in _DROPOUTS[kind].model_fields:
            native.set(key.role.to, value, key.path)
        else:
            native.say(f"{key.path}: STLM does not read it with dropout_type: {kind}")
