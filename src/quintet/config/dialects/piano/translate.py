"""Rules for keys of piano-gpt that depend on each other, and the way back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from quintet.config.dialects.dialect import Dialect, Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano.music import music, music_back
from quintet.config.dialects.piano.schema import CONSTANT, COSINE, SCRATCH, File
from quintet.config.keypath import ABSENT, KeyPath, is_mapping, lookup, show
from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.names import RUN_FILE, run_named
from quintet.config.optimizer import AdamWConfig
from quintet.config.provenance import Problem, RunFileError, origin_of, shown
from quintet.config.read import YamlDocument
from quintet.config.schedule import ConstantConfig, CosineConfig
from quintet.config.schema import RunConfig

OVERRIDES = "overrides"
_SAID_BY_KEYS = {"sequence_length", "learn_prompts", "processes"}
RUN_NAME = "midi-gpt2"
_TOKENIZER_ALONE = {"tokenizer", "dataset"}
"""The sections of a file that trains a tokenizer and no model."""
_SIZES = {
    "n_layer": ("layers",),
    "n_head": ("attention", "heads"),
    "n_embd": ("width",),
    "bias": ("feedforward", "bias"),
}
_DROPOUTS = ("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout")


def _shape(document: YamlDocument) -> YamlDocument:
    """``document`` with the keys of `overrides` at the top, each with its place.

    Raises RunFileError where the same key stands at the top with another value.
    """
    if not isinstance(document.values.get(OVERRIDES), dict):
        return document
    inner, rest = document.apart(OVERRIDES)
    values = copy.deepcopy(rest.values)
    problems: list[Problem] = []
    _bring_up(values, inner.values, (), document, problems)
    if problems:
        raise RunFileError(problems)
    return YamlDocument(values, rest.provenance | {path: origin for path, origin in inner.provenance.items() if path})


def _bring_up(
    values: dict[str, Any], inner: dict[str, Any], path: KeyPath, document: YamlDocument, problems: list[Problem]
) -> None:
    for name, value in inner.items():
        here = (*path, name)
        old = values.get(name)
        if is_mapping(old) and is_mapping(value):
            _bring_up(old, value, here, document, problems)
        elif old is None or old == value:
            values[name] = value
        else:
            message = f"says {value!r}, and {show(here)} says otherwise; keep one"
            origin = origin_of((OVERRIDES, *here), document.provenance)
            problems.append(Problem(origin, show((OVERRIDES, *here)), message))


def _rules(theirs: File, native: NativeBuilder) -> None:
    """Everything that a key alone does not say."""
    if theirs.command == "resume":
        where = "FOLDER" if theirs.init_from in SCRATCH else theirs.init_from
        native.refuse("command", f"resume needs no file here: `quintet train {where}` continues the run in that folder")
        return
    if native.given.purpose == "train" and {"tokenizer"} <= native.given.document.values.keys() <= _TOKENIZER_ALONE:
        native.refuse(
            "tokenizer.class_name", "is all that the file trains: `quintet prepare` does it; a run needs stage or model"
        )
    _masking(theirs, native)
    run = _start(theirs, native)
    model: dict[str, Any] = run.get("model", {}) if run else {}
    own = model.get("kind", "transformer") == "transformer"
    _model_of_run(theirs, native, model) if run and own else _model(theirs, native)
    music(theirs, native, run.get("tokenizer") if run else None)
    _system(theirs, native)
    _batch(theirs, native)
    _optimizer(theirs, native)
    _schedule(theirs, native)
    _evaluation(theirs, native)
    _logging(theirs, native)


def _masking(theirs: File, native: NativeBuilder) -> None:
    masking = theirs.loss_masking
    prompts = theirs.training.prompt_masking
    key = "loss_masking"
    if prompts is not None:
        if native.has("loss_masking") and prompts != (masking == "finetuning"):
            native.refuse("training.prompt_masking", "is not what loss_masking says; keep one of the two")
        masking, key = ("finetuning" if prompts else "pretraining"), "training.prompt_masking"
    native.set("data.learn_prompts", masking == "pretraining", key)


def _start(theirs: File, native: NativeBuilder) -> dict[str, Any] | None:
    """The run file of the run that this one starts from, None when it starts from new weights or from elsewhere."""
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
            "is a pickle of piano-gpt's, which can run any code when it is read; give the folder of a run, or of a "
            "checkpoint of Hugging Face's",
        )
        return None
    native.set("model.init", {"kind": "pretrained", "path": path}, "init_from")
    return _run_in(path)


def _run_in(path: str) -> dict[str, Any] | None:
    """The run file of the run that ``path`` names, None where there is none."""
    folder = run_named(path)
    return None if folder is None else yaml.safe_load((folder / RUN_FILE).read_text(encoding="utf-8"))


def _model(theirs: File, native: NativeBuilder) -> None:
    """GPT-2 as nanoGPT has it: learned positions, exact GELU, the head tied to the embedding."""
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
    _dropout(theirs, native)
    length, key = _length(theirs, native)
    native.set("data.sequence_length", length, key)
    if native.has("model.context_size"):
        native.set("model.context_length", theirs.model.context_size, "model.context_size")
    else:
        native.set("model.context_length", length, key)
    if length > native.get("model.context_length"):
        native.refuse(key, f"{length} tokens are more than the {theirs.model.context_size} of model.context_size")


def _length(theirs: File, native: NativeBuilder) -> tuple[int, str]:
    """Tokens of a sample, and the key that says so."""
    own = native.has("data.context_size") or not native.has("model.context_size")
    return (theirs.data.context_size, "data.context_size") if own else (theirs.model.context_size, "model.context_size")


def _dropout(theirs: File, native: NativeBuilder) -> None:
    for path in _DROPOUTS:
        native.set(path, theirs.model.dropout, "model.dropout")


def _model_of_run(theirs: File, native: NativeBuilder, run: dict[str, Any]) -> None:
    """The model is that of the run, but for its dropout and for positions that are no longer needed."""
    for name, value in run.items():
        if name != "init":
            native.set(f"model.{name}", value, "init_from")
    other: list[str] = []
    for name, path in _SIZES.items():
        has, asked = lookup(run, path), getattr(theirs.model, name)
        if native.has(f"model.{name}") and has is not ABSENT and has != asked:
            other.append(f"model.{name} {shown(has)} and not {shown(asked)}")
    if other:
        native.say(f"init_from: the model is that of {theirs.init_from}, which has {', '.join(other)}")
    if native.has("model.dropout"):
        _dropout(theirs, native)
    length, key = _length(theirs, native)
    positions = run.get("context_length")
    if not native.has(key) and positions is not None:
        length, key = positions, "init_from"
    native.set("data.sequence_length", length, key)
    native.set("model.context_length", length, key)


def _system(theirs: File, native: NativeBuilder) -> None:
    precision, device = theirs.system.dtype, theirs.system.device
    if precision == "fp16" and device != "cuda":
        if native.has("system.dtype"):
            native.say(f"system.dtype: float16 is for GPUs; on {device} it is float32, as in the original")
        precision = "fp32"
    native.set("train.precision", precision, "system.dtype", "system.device")
    native.set("train.compile", "auto" if theirs.system.compile else False, "system.compile")
    native.set("data.processes", max(1, theirs.system.data_workers), "system.data_workers")


def _batch(theirs: File, native: NativeBuilder) -> None:
    size, key = theirs.data.batch_size, "training.batch_size"
    whole, accumulation = theirs.training.batch_size, "optimizer.gradient_accumulation_steps"
    if whole is None:
        return
    if whole % size:
        native.refuse(key, f"{whole} samples are no whole number of passes of {size} (training.microbatch_size)")
        return
    if native.has(accumulation) and theirs.optimizer.gradient_accumulation_steps != whole // size:
        native.say(f"{accumulation}: not used, as in the original: {key} makes it {whole // size}")
    native.set("train.accumulation", whole // size, key, "data.batch_size")


def _optimizer(theirs: File, native: NativeBuilder) -> None:
    native.set("optimizer.kind", "adamw")
    native.set("optimizer.decay", "matrices")
    native.set("optimizer.eps", 1e-8)
    betas = [theirs.optimizer.beta1, theirs.optimizer.beta2]
    native.set("optimizer.betas", betas, "optimizer.beta1", "optimizer.beta2")
    native.set("train.clip_norm", theirs.optimizer.grad_clip or None, "optimizer.grad_clip")


def _schedule(theirs: File, native: NativeBuilder) -> None:
    decays, kind = theirs.lr.decay_lr, theirs.lr.type
    if kind is not None:
        if native.has("lr.decay_lr") and decays != (kind == COSINE):
            native.refuse("lr.type", f"{kind} and lr.decay_lr: {shown(decays)} exclude one another; keep one")
        decays = kind != CONSTANT
    key = "lr.decay_lr" if kind is None else "lr.type"
    native.set("schedule.kind", "cosine" if decays else "constant", key)
    if not decays:
        return
    highest, lowest = theirs.lr.learning_rate, theirs.lr.min_lr
    if lowest > highest:
        native.say(f"lr.min_lr: {lowest:g} is above learning_rate, where the rate stays: {highest:g}")
        lowest = highest
    native.set("schedule.min_lr", lowest, "lr.min_lr")
    native.set("schedule.warmup_steps", theirs.lr.warmup_iters, "lr.warmup_iters")
    native.set("schedule.first", 1)
    if theirs.lr.lr_decay_iters is not None:
        native.set("schedule.decay_steps", theirs.lr.lr_decay_iters, "lr.lr_decay_iters")
    else:
        native.set("schedule.decay_steps", theirs.optimizer.max_iters, "optimizer.max_iters")


def _evaluation(theirs: File, native: NativeBuilder) -> None:
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


def _logging(theirs: File, native: NativeBuilder) -> None:
    logging = theirs.logging
    if not logging.wandb_log:
        return
    arguments = {"project": logging.wandb_project}
    keys = ["logging.wandb_log", "logging.wandb_project"]
    if logging.wandb_entity is not None:
        arguments["entity"] = logging.wandb_entity
        keys.append("logging.wandb_entity")
    parts = [part for part in (logging.wandb_run_name_suffix, logging.wandb_time_suffix) if part is not None]
    if parts:
        arguments["name"] = "-".join([RUN_NAME, *parts])
        keys += ["logging.wandb_run_name_suffix", "logging.wandb_time_suffix"]
    native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)


def _back(config: RunConfig, put: Put) -> None:
    """Put every key that several native keys decide, and the data as native keys."""
    put("loss_masking", "pretraining" if config.data.learn_prompts else "finetuning")
    put("data.context_size", config.data.sequence_length)
    if config.data.processes is not None:
        put("system.data_workers", config.data.processes)
    put("out_dir", config.runs_dir)
    put("system.dtype", config.train.precision)
    put("system.compile", config.train.compile is not False)
    if isinstance(config.model, TransformerConfig):
        _model_back(config.model, put)
    _training_back(config, put)
    _logging_back(config, put)
    said = music_back(config, put)
    native = _native(config, said)
    if native:
        put("quintet", native)


def _model_back(model: TransformerConfig, put: Put) -> None:
    init = model.init
    put("init_from", init.path if isinstance(init, PretrainedInitConfig) else SCRATCH[0])
    put("model.dropout", model.residual_dropout)
    put("model.bias", model.feedforward.bias)
    put("model.n_head", model.heads)
    if model.context_length is not None:
        put("model.context_size", model.context_length)


def _training_back(config: RunConfig, put: Put) -> None:
    shape = config.batch
    put("data.batch_size", shape.micro_batch_size)
    put("optimizer.gradient_accumulation_steps", shape.accumulation)
    put("optimizer.grad_clip", config.train.clip_norm or 0.0)
    if isinstance(config.optimizer, AdamWConfig):
        put("optimizer.beta1", config.optimizer.betas[0])
        put("optimizer.beta2", config.optimizer.betas[1])
    schedule = config.schedule
    put("lr.decay_lr", not isinstance(schedule, ConstantConfig))
    if isinstance(schedule, CosineConfig):
        put("lr.min_lr", schedule.min_lr)
        put("lr.warmup_iters", schedule.warmup_steps)
        put("lr.lr_decay_iters", schedule.decay_steps or config.train.steps)
    if isinstance(config.evaluate.every, int):
        put("eval_interval", config.evaluate.every)
    if config.evaluate.samples is not None:
        put("eval_iters", max(1, config.evaluate.samples // shape.micro_batch_size))


def _logging_back(config: RunConfig, put: Put) -> None:
    track = next((one for one in config.track if one.kind == "wandb"), None)
    put("logging.wandb_log", track is not None)
    if track is None:
        return
    arguments: dict[str, Any] = dict(track.arguments)
    if "project" in arguments:
        put("logging.wandb_project", arguments["project"])
    if "entity" in arguments:
        put("logging.wandb_entity", arguments["entity"])
    name = str(arguments.get("name", ""))
    if name.startswith(f"{RUN_NAME}-"):
        put("logging.wandb_run_name_suffix", name.removeprefix(f"{RUN_NAME}-"))


def _native(config: RunConfig, said: set[str]) -> dict[str, Any]:
    """Settings that piano-gpt has no key for: data and tokenizer, as far as they differ from the defaults and are not
    ``said`` by keys of its own."""
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    tokenizer = config.tokenizer.model_dump(mode="json", exclude_defaults=True)
    rest = {name: value for name, value in data.items() if name not in _SAID_BY_KEYS | said}
    found: dict[str, Any] = {"data": rest} if rest else {}
    return found | ({"tokenizer": tokenizer} if tokenizer and "tokenizer" not in said else {})


DIALECT = Dialect("piano", "piano-gpt", schema=File, rules=_rules, normalize=_shape, back=_back, hydra=True)
