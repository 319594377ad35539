"""What PhyAGI's three trainers have in common: precision, length, optimizer."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.values import OFF

ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
"""What DeepSpeed's AdamW has of what a file does not say."""


def period(given: DialectFile, key: str) -> Any:
    """Steps, or a fraction of all; None for never."""
    return None if given[key] == OFF else given[key]


def precision(given: DialectFile, native: NativeBuilder, flags: dict[str, str], *, automatic: bool = False) -> None:
    """Numbers of the matrix products: what one of ``flags`` says, else the model's torch_dtype, else fp32."""
    on = [key for key in flags if given[key]]
    if len(on) > 1:
        given.refuse(on[1], f"cannot be on together with {on[0]}; set one of the two to false")
    dtype = given["model.torch_dtype"]
    if on:
        native.set("train.precision", flags[on[0]], on[0])
    elif dtype is not None:
        native.set("train.precision", dtype, "model.torch_dtype")
    else:
        native.set("train.precision", "auto" if automatic else "fp32", *flags)


def length(given: DialectFile, native: NativeBuilder, *, epochs: str, steps: str) -> None:
    """Steps where they are given, else epochs."""
    if given[steps] is not None and given[steps] >= 0:
        if given[steps] == 0:
            given.refuse(steps, "0 trains nothing; give a number of steps, or -1 for whole epochs")
        native.set("train.steps", given[steps], steps)
    else:
        native.set("train.epochs", given[epochs], epochs)


def batch_of_each(native: NativeBuilder, *keys: str) -> None:
    """Passes × samples are what each device does of a step, as ``keys`` say."""
    samples = native.get("train.micro_batch_size") * native.get("train.accumulation")
    native.set("train.batch_size_per_device", samples, *keys)


def evaluation_size(given: DialectFile, native: NativeBuilder, key: str, samples: int | None) -> None:
    """Validate on ``samples`` of each dataset, all when None; datasets that are joined count as one."""
    native.set("evaluate.samples", samples, key)
    if samples is not None and given["eval_dataset_concat"] is None:
        native.set("evaluate.samples_each", True, key)


def optimizer(
    given: DialectFile,
    native: NativeBuilder,
    section: str,
    name: str | None,
    said: tuple[str, ...],
    defaults: dict[str, Any],
) -> None:
    """AdamW where ``name`` is None, else that class of torch.optim, with the parameters of ``section``; the keys
    ``said`` say which."""
    native.set("optimizer.kind", "adamw" if name is None else "torch", *said)
    native.set("optimizer.decay", "all")
    if name is not None:
        native.set("optimizer.name", name, *said)
        native.set("optimizer.arguments", {}, *said)
    own = ("lr", "weight_decay") if name is not None else ("lr", "betas", "eps", "weight_decay")
    for leaf in own:
        key = f"{section}.{leaf}"
        native.set(f"optimizer.{leaf}", defaults[leaf] if given[key] is None else given[key], key)
    for key in given.within(section):
        leaf = key.removeprefix(f"{section}.")
        if leaf in (*own, "adam_w_mode", "torch_adam"):
            continue
        if name is None:
            given.refuse(key, "is no parameter of AdamW; leave it out")
        else:
            native.set(f"optimizer.arguments.{leaf}", given[key], key)
