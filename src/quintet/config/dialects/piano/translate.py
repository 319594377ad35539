"""piano-gpt as a dialect: the nesting of its files, and the rules that need several keys."""

import copy
from pathlib import Path
from typing import Any

import yaml

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano.back import back
from quintet.config.dialects.piano.schema import File
from quintet.config.dialects.piano.translate_music import set_music
from quintet.config.dialects.piano.values import RUN_NAME, SCRATCH
from quintet.config.keypath import ABSENT, KeyPath, is_mapping, lookup, show
from quintet.config.names import RUN_FILE, run_named
from quintet.config.provenance import Problem, RunFileError, origin_of, shown
from quintet.config.read import YamlDocument

_OVERRIDES = "overrides"
_OF_TOKENIZER = {"tokenizer", "dataset"}
"""The sections of a file that trains a tokenizer and no model."""
_SIZES = {
    "n_layer": ("layers",),
    "n_head": ("attention", "heads"),
    "n_embd": ("width",),
    "bias": ("feedforward", "bias"),
}


def _normalize(document: YamlDocument) -> YamlDocument:
    """Move the keys in `overrides` to the top, each with its line.

    Raises RunFileError if the file has the same key at the top with another value.
    """
    if not isinstance(document.values.get(_OVERRIDES), dict):
        return document
    inner, rest = document.apart(_OVERRIDES)
    values = copy.deepcopy(rest.values)
    problems: list[Problem] = []
    _move_up(values, inner.values, (), document, problems)
    if problems:
        raise RunFileError(problems)
    return YamlDocument(values, rest.provenance | {path: origin for path, origin in inner.provenance.items() if path})


def _move_up(
    values: dict[str, Any], overrides: dict[str, Any], path: KeyPath, document: YamlDocument, problems: list[Problem]
) -> None:
    for name, value in overrides.items():
        here = (*path, name)
        old = values.get(name)
        if is_mapping(old) and is_mapping(value):
            _move_up(old, value, here, document, problems)
        elif old is None or old == value:
            values[name] = value
        else:
            message = f"says {value!r}, and {show(here)} says otherwise; keep one"
            origin = origin_of((_OVERRIDES, *here), document.provenance)
            problems.append(Problem(origin, show((_OVERRIDES, *here)), message))


def _rules(theirs: File, native: NativeBuilder) -> None:
    if theirs.command == "resume":
        folder = "FOLDER" if theirs.init_from in SCRATCH else theirs.init_from
        native.refuse(
            "command", f"resume needs no file; run `quintet train {folder}` to continue the run in that folder"
        )
        return
    if native.given.purpose == "train" and {"tokenizer"} <= native.given.document.values.keys() <= _OF_TOKENIZER:
        native.refuse(
            "tokenizer.class_name", "is all that the file trains: `quintet prepare` does it; a run needs stage or model"
        )
    _set_masking(theirs, native)
    run = _set_start(theirs, native)
    model: dict[str, Any] = run.get("model", {}) if run else {}
    if run and model.get("kind", "transformer") == "transformer":
        _set_model_of_run(theirs, native, model)
    else:
        _set_model(theirs, native)
    set_music(theirs, native, run.get("tokenizer") if run else None)
    _set_system(theirs, native)
    _set_batch(theirs, native)
    _set_optimizer(theirs, native)
    _set_schedule(theirs, native)
    _set_evaluation(theirs, native)
    _set_logging(theirs, native)


def _set_masking(theirs: File, native: NativeBuilder) -> None:
    masking, prompts, key = theirs.loss_masking, theirs.training.prompt_masking, "loss_masking"
    if prompts is not None:
        if native.has("loss_masking") and prompts != (masking == "finetuning"):
            native.refuse("training.prompt_masking", "contradicts loss_masking; keep one of the two")
        masking, key = ("finetuning" if prompts else "pretraining"), "training.prompt_masking"
    native.set("data.learn_prompts", masking == "pretraining", key)


def _set_start(theirs: File, native: NativeBuilder) -> dict[str, Any] | None:
    """Set the initial weights. Return the run file of the run that they come from, None if they are of no run."""
    command, path = theirs.command, theirs.init_from
    scratch = path in SCRATCH
    if command == "tune" and scratch:
        native.refuse(
            "command", "tune starts from a run, and there is none; add checkpoint_path=FOLDER, or command=init"
        )
    elif command == "init" and not scratch:
        native.refuse("init_from", "is not used by command: init; set command: tune, or leave it out")
    native.set("model.kind", "transformer")
    if scratch:
        native.set("model.init", {"kind": "normal", "std": 0.02, "scale_residual": True}, "init_from")
        return None
    if Path(path).suffix in (".pt", ".pth"):
        native.refuse(
            "init_from",
            "is a pickle of piano-gpt, which can run any code when it is read; give the folder of a run, or of a "
            "Hugging Face checkpoint",
        )
        return None
    native.set("model.init", {"kind": "pretrained", "path": path}, "init_from")
    folder = run_named(path)
    return None if folder is None else yaml.safe_load((folder / RUN_FILE).read_text(encoding="utf-8"))


def _set_model(theirs: File, native: NativeBuilder) -> None:
    """Set GPT-2 as nanoGPT has it: learned positions, exact GELU, the head tied to the embedding."""
    native.set("model.position.kind", "learned")
    native.set("model.attention.kind", "causal")
    native.set("model.feedforward.kind", "plain")
    native.set("model.feedforward.activation", "gelu")
    native.set("model.tie_embeddings", True)
    native.set("model.head.bias", False)
    bias = theirs.model.bias
    native.set("model.norm", {"kind": "layer", "eps": 1e-5, "bias": bias}, "model.bias")
    for part in ("attention", "feedforward"):
        native.set(f"model.{part}.bias", bias, "model.bias")
    _set_dropout(theirs, native)
    length, key = _length(theirs, native)
    native.set("data.sequence_length", length, key)
    if native.has("model.context_size"):
        native.set("model.context_length", theirs.model.context_size, "model.context_size")
    else:
        native.set("model.context_length", length, key)
    if length > native.get("model.context_length"):
        native.refuse(key, f"{length} tokens are more than the {theirs.model.context_size} of model.context_size")


def _length(theirs: File, native: NativeBuilder) -> tuple[int, str]:
    """Return the tokens of a sample, and the key that gives them."""
    own = native.has("data.context_size") or not native.has("model.context_size")
    return (theirs.data.context_size, "data.context_size") if own else (theirs.model.context_size, "model.context_size")


def _set_dropout(theirs: File, native: NativeBuilder) -> None:
    for path in ("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout"):
        native.set(path, theirs.model.dropout, "model.dropout")


def _set_model_of_run(theirs: File, native: NativeBuilder, run: dict[str, Any]) -> None:
    """Set the model of the run that this one starts from, except its dropout and the positions that are not needed."""
    for name, value in run.items():
        if name != "init":
            native.set(f"model.{name}", value, "init_from")
    differences: list[str] = []
    for name, path in _SIZES.items():
        theirs_value, run_value = getattr(theirs.model, name), lookup(run, path)
        if native.has(f"model.{name}") and run_value is not ABSENT and run_value != theirs_value:
            differences.append(f"model.{name} {shown(run_value)} and not {shown(theirs_value)}")
    if differences:
        native.say(f"init_from: the model is that of {theirs.init_from}, which has {', '.join(differences)}")
    if native.has("model.dropout"):
        _set_dropout(theirs, native)
    length, key = _length(theirs, native)
    positions = run.get("context_length")
    if not native.has(key) and positions is not None:
        length, key = positions, "init_from"
    native.set("data.sequence_length", length, key)
    native.set("model.context_length", length, key)


def _set_system(theirs: File, native: NativeBuilder) -> None:
    precision, device = theirs.system.dtype, theirs.system.device
    if precision == "fp16" and device != "cuda":
        if native.has("system.dtype"):
            native.say(f"system.dtype: float16 is for GPUs; on {device} float32 is used, as in the original")
        precision = "fp32"
    native.set("train.precision", precision, "system.dtype", "system.device")
    native.set("train.compile", "auto" if theirs.system.compile else False, "system.compile")
    native.set("data.processes", max(1, theirs.system.data_workers), "system.data_workers")


def _set_batch(theirs: File, native: NativeBuilder) -> None:
    size, key = theirs.data.batch_size, "training.batch_size"
    samples, accumulation = theirs.training.batch_size, "optimizer.gradient_accumulation_steps"
    if samples is None:
        return
    if samples % size:
        native.refuse(key, f"{samples} samples are not a multiple of the {size} of a pass (training.microbatch_size)")
        return
    if native.has(accumulation) and theirs.optimizer.gradient_accumulation_steps != samples // size:
        native.say(f"{accumulation}: not used, as in the original: {key} makes it {samples // size}")
    native.set("train.accumulation", samples // size, key, "data.batch_size")


def _set_optimizer(theirs: File, native: NativeBuilder) -> None:
    native.set("optimizer.kind", "adamw")
    native.set("optimizer.decay", "matrices")
    native.set("optimizer.eps", 1e-8)
    betas = [theirs.optimizer.beta1, theirs.optimizer.beta2]
    native.set("optimizer.betas", betas, "optimizer.beta1", "optimizer.beta2")
    native.set("train.clip_norm", theirs.optimizer.grad_clip or None, "optimizer.grad_clip")


def _set_schedule(theirs: File, native: NativeBuilder) -> None:
    decays, kind, key = theirs.lr.decay_lr, theirs.lr.type, "lr.decay_lr"
    if kind is not None:
        if native.has("lr.decay_lr") and decays != (kind == "CosineDecay"):
            native.refuse("lr.type", f"{kind} and lr.decay_lr: {shown(decays)} exclude one another; keep one")
        decays, key = kind == "CosineDecay", "lr.type"
    native.set("schedule.kind", "cosine" if decays else "constant", key)
    if not decays:
        return
    highest, lowest = theirs.lr.learning_rate, theirs.lr.min_lr
    if lowest > highest:
        native.say(f"lr.min_lr: {lowest:g} is above learning_rate; the rate stays at {highest:g}")
        lowest = highest
    native.set("schedule.min_lr", lowest, "lr.min_lr")
    native.set("schedule.warmup_steps", theirs.lr.warmup_iters, "lr.warmup_iters")
    native.set("schedule.first", 1)
    if theirs.lr.lr_decay_iters is not None:
        native.set("schedule.decay_steps", theirs.lr.lr_decay_iters, "lr.lr_decay_iters")
    else:
        native.set("schedule.decay_steps", theirs.optimizer.max_iters, "optimizer.max_iters")


def _set_evaluation(theirs: File, native: NativeBuilder) -> None:
    size = theirs.data.batch_size
    native.set("evaluate.every", theirs.eval_interval, "eval_interval")
    native.set("evaluate.offset", 1, "eval_interval")
    native.set("evaluate.batch_size", size, "data.batch_size")
    native.set("evaluate.samples", theirs.eval_iters * size, "eval_iters", "data.batch_size")
    native.set("evaluate.samples_each", True, "eval_iters")
    native.set("sample.prompts", [])
    native.set("checkpoint.every", theirs.eval_interval, "eval_interval")
    native.set("checkpoint.keep", 1)
    native.set("checkpoint.keep_best", True)


def _set_logging(theirs: File, native: NativeBuilder) -> None:
    logging = theirs.logging
    if not logging.wandb_log:
        return
    arguments = {"project": logging.wandb_project}
    keys = ["logging.wandb_log", "logging.wandb_project"]
    if logging.wandb_entity is not None:
        arguments["entity"] = logging.wandb_entity
        keys.append("logging.wandb_entity")
    suffixes = [part for part in (logging.wandb_run_name_suffix, logging.wandb_time_suffix) if part is not None]
    if suffixes:
        arguments["name"] = "-".join([RUN_NAME, *suffixes])
        keys += ["logging.wandb_run_name_suffix", "logging.wandb_time_suffix"]
    native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)


DIALECT = Dialect("piano", "piano-gpt", schema=File, rules=_rules, normalize=_normalize, back=back, hydra=True)
