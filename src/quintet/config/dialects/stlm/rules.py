"""What STLM's keys say together, and what it always does."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.model_rules import model_rules, sources

HELD_OUT = 0.01
FLAT = tuple(f"trainer.optimizer.{name}" for name in ("lr", "weight_decay", "beta1", "beta2"))


def rules(given: DialectFile, native: NativeBuilder) -> None:
    """Set the native keys that are not one key's alone."""
    model_rules(given, native)
    native.set("data.sources", sources(given, "trainer.dataset"), "trainer.dataset")
    native.set("data.validation", HELD_OUT)
    native.set("data.packing.kind", "stream", "trainer.dataloader.name")
    if given["trainer.dataloader.name"] == "mlm" and given["trainer.loss_fn.name"] != "masked":
        given.refuse("trainer.dataloader.name", "next_token_mlm needs loss_fn: next_token_mlm, which hides the tokens")
    native.set("data.shuffle", True, "trainer.datasampling.name")
    native.set("trainer.kind", "quintet", "trainer.trainer_type")
    _optimizer(given, native)
    _schedule(given, native)
    _rhythm(given, native)
    if given.has("trainer.dropout_scheduler.dropout_type"):
        path = "trainer.dropout_scheduler.dropout_type"
        native.set("dropout_schedule.kind", given[path], path)
    if given.has("general.device"):
        native.set("train.device", given["general.device"], "general.device")
    _logging(given, native)


def _optimizer(given: DialectFile, native: NativeBuilder) -> None:
    path, name = "trainer.optimizer.optimizer_name", given["trainer.optimizer.optimizer_name"]
    clip = given["trainer.optimizer.grad_clip"]
    native.set("train.clip_norm", clip or None, "trainer.optimizer.grad_clip")
    if given.has("trainer.optimizer.params"):
        _with_params(given, native, name)
        return
    betas = [given["trainer.optimizer.beta1"], given["trainer.optimizer.beta2"]]
    native.set("optimizer.lr", given["trainer.optimizer.lr"], "trainer.optimizer.lr")
    native.set("optimizer.weight_decay", given["trainer.optimizer.weight_decay"], "trainer.optimizer.weight_decay")
    if name in ("AdamW", "nanoGPTadamW"):
        native.set("optimizer.kind", "adamw", path)
        native.set("optimizer.betas", betas, "trainer.optimizer.beta1", "trainer.optimizer.beta2")
        native.set("optimizer.decay", "matrices" if name == "nanoGPTadamW" else "all", path)
        return
    native.set("optimizer.kind", "torch", path)
    native.set("optimizer.name", name, path)
    native.set("optimizer.decay", "all", path)
    if given.has("trainer.optimizer.beta1") or given.has("trainer.optimizer.beta2"):
        native.set("optimizer.arguments.betas", betas, "trainer.optimizer.beta1", "trainer.optimizer.beta2")


def _with_params(given: DialectFile, native: NativeBuilder, name: str) -> None:
    """An optimizer by the arguments of its class, whose own defaults hold for what is not given."""
    path = "trainer.optimizer.params"
    for flat in FLAT:
        if given.has(flat):
            given.refuse(flat, "stands beside params; put it into them")
    arguments = dict(given[path])
    native.set("optimizer.kind", "torch", "trainer.optimizer.optimizer_name")
    torch_name = "AdamW" if name == "nanoGPTadamW" else name
    native.set("optimizer.name", torch_name, "trainer.optimizer.optimizer_name")
    native.set("optimizer.lr", arguments.pop("lr", 1e-3), path)
    native.set("optimizer.weight_decay", arguments.pop("weight_decay", 0.01 if torch_name == "AdamW" else 0.0), path)
    decay = "matrices" if name == "nanoGPTadamW" else "all"
    native.set("optimizer.decay", decay, "trainer.optimizer.optimizer_name")
    if arguments:
        native.set("optimizer.arguments", arguments, path)


def _schedule(given: DialectFile, native: NativeBuilder) -> None:
    path, kind = "trainer.lr_scheduler.name", given["trainer.lr_scheduler.name"]
    (warmup, warming), params = _warmup(given, native), given["trainer.lr_scheduler.params"]
    if kind not in ("cosine", "constant"):
        arguments = dict(params or {})
        native.set("schedule.kind", "torch", path)
        native.set("schedule.name", kind, path)
        if "warmup_steps" in arguments:
            warmup, warming = arguments.pop("warmup_steps"), "trainer.lr_scheduler.params"
        native.set("schedule.warmup_steps", warmup, warming)
        arguments.pop("verbose", None)
        native.set("schedule.arguments", arguments, "trainer.lr_scheduler.params")
        return
    if params:
        given.refuse("trainer.lr_scheduler.params", f"are for PyTorch's schedulers, and the scheduler is {kind}")
    if kind == "constant":
        native.set("schedule", {"kind": "constant"}, path)
        if warmup:
            native.say("trainer.warmup_iters: lr_scheduler: constant has no warm-up; decay_lr: false has one")
        return
    native.set("schedule.kind", "cosine" if given["trainer.decay_lr"] else "constant", "trainer.decay_lr", path)
    native.set("schedule.warmup_steps", warmup, warming)
    native.set("schedule.first", 0, path)
    if not given["trainer.decay_lr"]:
        return
    native.set("schedule.min_lr", given["trainer.optimizer.min_lr"], "trainer.optimizer.min_lr")
    decay = "trainer.lr_decay_iters" if given.has("trainer.lr_decay_iters") else "trainer.max_iters"
    native.set("schedule.decay_steps", warmup + given[decay], decay, warming)


def _warmup(given: DialectFile, native: NativeBuilder) -> tuple[int, str]:
    """Its steps, and the key that says them. The oldest files have them a second time beside the optimizer, where STLM
    never read them."""
    path, unread = "trainer.warmup_iters", "trainer.optimizer.warmup_iters"
    if not given.has(path):
        return (given[unread], unread) if given.has(unread) else (0, path)
    if given.has(unread) and given[unread] != given[path]:
        native.say(f"{unread}: STLM reads the {given[path]} of {path}")
    return given[path], path


def _rhythm(given: DialectFile, native: NativeBuilder) -> None:
    """Validations and checkpoints."""
    path = "trainer.eval.dataset_loss_eval_iters"
    native.set("evaluate.samples", given[path] * given["trainer.batch_size"], path, "trainer.batch_size")
    validates = given["trainer.run_eval"] is not False
    native.set("evaluate.at_start", validates, "trainer.run_eval", "trainer.eval_interval")
    native.set("evaluate.at_end", False, "trainer.eval_interval")
    if not validates:
        native.set("evaluate.every", None, "trainer.run_eval")
    else:
        _benchmarks(given, native)
    native.set("sample.prompts", [], "trainer.eval.text_generation_eval")
    native.set("checkpoint.at_end", True, "trainer.checkpoint_interval")
    native.set("checkpoint.keep", None, "trainer.checkpoint_interval")
    native.set("checkpoint.keep_best", False, "trainer.checkpoint_interval")


def _benchmarks(given: DialectFile, native: NativeBuilder) -> None:
    """What is measured beside the loss, with each validation."""
    paths = ("trainer.eval.mcq_benchmarks", "trainer.eval.benchmarks")
    tasks = list(dict.fromkeys(task for path in paths for task in given[path]))
    if tasks:
        native.set("evaluate.tasks", tasks, *paths)
        native.set("evaluate.tasks_every", given["trainer.eval_interval"], "trainer.eval_interval", *paths)
    path = "trainer.eval.text_modeling_eval"
    if given[path]:
        native.set("evaluate.text_modeling", {}, path)
        if not given.has(path):
            native.say(f"{path}: not given, and taken as true, as the document says; STLM's code takes false")


def _logging(given: DialectFile, native: NativeBuilder) -> None:
    name = given["general.logging.wandb_run_name"]
    if name is not None:
        folder = name.replace("/", "-").replace("\\", "-")
        native.set("name", folder, "general.logging.wandb_run_name")
    if not given["general.logging.wandb_log"]:
        return
    arguments: dict[str, Any] = {"project": given["general.logging.wandb_project"]}
    if name is not None:
        arguments["name"] = name
    if given.has("general.logging.group_name"):
        arguments["group"] = given["general.logging.group_name"]
    keys = [f"general.logging.{key}" for key in ("wandb_log", "wandb_project", "wandb_run_name", "group_name")]
    native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)
