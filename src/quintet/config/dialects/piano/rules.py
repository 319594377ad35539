"""What several keys of piano-gpt say together about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano.keys import CONSTANT, COSINE, SCRATCH
from quintet.config.dialects.piano.music import music
from quintet.config.keypath import ABSENT, lookup
from quintet.config.names import RUN_FILE, run_named
from quintet.config.provenance import shown

RUN_NAME = "midi-gpt2"
_SIZES = {
    "model.n_layer": ("layers",),
    "model.n_head": ("attention", "heads"),
    "model.n_embd": ("width",),
    "model.bias": ("feedforward", "bias"),
}
_DROPOUTS = ("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout")


def rules(given: DialectFile, native: NativeBuilder) -> None:
    """Everything that a key alone does not say."""
    if given["command"] == "resume":
        where = "FOLDER" if given["init_from"] in SCRATCH else given["init_from"]
        given.refuse("command", f"resume needs no file here: `quintet train {where}` continues the run in that folder")
        return
    _masking(given, native)
    theirs = _start(given, native)
    model = theirs.get("model", {}) if theirs else {}
    own = model.get("kind", "transformer") == "transformer"
    _model_of_run(given, native, model) if theirs and own else _model(given, native)
    music(given, native, theirs.get("tokenizer") if theirs else None)
    _system(given, native)
    _batch(given, native)
    _optimizer(given, native)
    _schedule(given, native)
    _evaluation(given, native)
    _logging(given, native)


def _masking(given: DialectFile, native: NativeBuilder) -> None:
    masking = given["loss_masking"]
    prompts = given["training.prompt_masking"]
    key = "loss_masking"
    if prompts is not None:
        if given.has("loss_masking") and prompts != (masking == "finetuning"):
            given.refuse("training.prompt_masking", "is not what loss_masking says; keep one of the two")
        masking, key = ("finetuning" if prompts else "pretraining"), "training.prompt_masking"
    native.set("data.learn_prompts", masking == "pretraining", key)


def _start(given: DialectFile, native: NativeBuilder) -> dict[str, Any] | None:
    """The run file of the run that this one starts from, None when it starts from new weights or from elsewhere."""
    command, path = given["command"], given["init_from"]
    scratch = path in SCRATCH
    if command == "tune" and scratch:
        given.refuse("command", "tune starts from a run, and there is none; give checkpoint_path, or command: init")
    elif command == "init" and not scratch:
        given.refuse("init_from", "is not used by command: init; set command: tune, or leave it out")
    native.set("model.kind", "transformer")
    if scratch:
        native.set("model.init", {"kind": "normal", "std": 0.02, "scale_residual": True}, "init_from")
        return None
    if Path(path).suffix in (".pt", ".pth"):
        given.refuse(
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


def _model(given: DialectFile, native: NativeBuilder) -> None:
    """GPT-2 as nanoGPT has it: learned positions, exact GELU, the head tied to the embedding."""
    native.set("model.position.kind", "learned")
    native.set("model.attention.kind", "causal")
    native.set("model.feedforward.kind", "plain")
    native.set("model.feedforward.activation", "gelu")
    native.set("model.tie_embeddings", True)
    native.set("model.head.bias", False)
    bias = given["model.bias"]
    native.set("model.norm", {"kind": "layer", "eps": 1e-5, "bias": bias}, "model.bias")
    for part in ("attention", "feedforward"):
        native.set(f"model.{part}.bias", bias, "model.bias")
    _dropout(given, native)
    length, key = _length(given)
    native.set("data.sequence_length", length, key)
    if given.has("model.context_size"):
        native.set("model.context_length", given["model.context_size"], "model.context_size")
    else:
        native.set("model.context_length", length, key)
    if length > native.get("model.context_length"):
        given.refuse(key, f"{length} tokens are more than the {given['model.context_size']} of model.context_size")


def _length(given: DialectFile) -> tuple[int, str]:
    """Tokens of a sample, and the key that says so."""
    own = given.has("data.context_size") or not given.has("model.context_size")
    key = "data.context_size" if own else "model.context_size"
    return given[key], key


def _dropout(given: DialectFile, native: NativeBuilder) -> None:
    for path in _DROPOUTS:
        native.set(path, given["model.dropout"], "model.dropout")


def _model_of_run(given: DialectFile, native: NativeBuilder, theirs: dict[str, Any]) -> None:
    """The model is that of the run, but for its dropout and for positions that are no longer needed."""
    for name, value in theirs.items():
        if name != "init":
            native.set(f"model.{name}", value, "init_from")
    other = []
    for key, path in _SIZES.items():
        has = lookup(theirs, path)
        if given.has(key) and has is not ABSENT and has != given[key]:
            other.append(f"{key} {shown(has)} and not {shown(given[key])}")
    if other:
        native.say(f"init_from: the model is that of {given['init_from']}, which has {', '.join(other)}")
    if given.has("model.dropout"):
        _dropout(given, native)
    length, key = _length(given)
    positions = theirs.get("context_length")
    if not given.has(key) and positions is not None:
        length, key = positions, "init_from"
    native.set("data.sequence_length", length, key)
    native.set("model.context_length", length, key)


def _system(given: DialectFile, native: NativeBuilder) -> None:
    precision, device = given["system.dtype"], given["system.device"]
    if precision == "fp16" and device != "cuda":
        if given.has("system.dtype"):
            native.say(f"system.dtype: float16 is for GPUs; on {device} it is float32, as in the original")
        precision = "fp32"
    native.set("train.precision", precision, "system.dtype", "system.device")
    native.set("train.compile", "auto" if given["system.compile"] else False, "system.compile")
    native.set("data.processes", max(1, given["system.data_workers"]), "system.data_workers")


def _batch(given: DialectFile, native: NativeBuilder) -> None:
    size, key = given["data.batch_size"], "training.batch_size"
    whole, accumulation = given[key], "optimizer.gradient_accumulation_steps"
    if whole is None:
        return
    if whole % size:
        given.refuse(key, f"{whole} samples are no whole number of passes of {size} (training.microbatch_size)")
        return
    if given.has(accumulation) and given[accumulation] != whole // size:
        given.refuse(accumulation, f"{key} makes it {whole // size}; keep one of the two")
    native.set("train.accumulation", whole // size, key, "data.batch_size")


def _optimizer(given: DialectFile, native: NativeBuilder) -> None:
    native.set("optimizer.kind", "adamw")
    native.set("optimizer.decay", "matrices")
    native.set("optimizer.eps", 1e-8)
    betas = [given["optimizer.beta1"], given["optimizer.beta2"]]
    native.set("optimizer.betas", betas, "optimizer.beta1", "optimizer.beta2")
    native.set("train.clip_norm", given["optimizer.grad_clip"] or None, "optimizer.grad_clip")


def _schedule(given: DialectFile, native: NativeBuilder) -> None:
    decays, kind = given["lr.decay_lr"], given["lr.type"]
    if kind is not None:
        if given.has("lr.decay_lr") and decays != (kind == COSINE):
            given.refuse("lr.type", f"{kind} and lr.decay_lr: {shown(decays)} exclude one another; keep one")
        decays = kind != CONSTANT
    key = "lr.decay_lr" if kind is None else "lr.type"
    native.set("schedule.kind", "cosine" if decays else "constant", key)
    if not decays:
        return
    highest, lowest = given["lr.learning_rate"], given["lr.min_lr"]
    if lowest > highest:
        native.say(f"lr.min_lr: {lowest:g} is above learning_rate, where the rate stays: {highest:g}")
        lowest = highest
    native.set("schedule.min_lr", lowest, "lr.min_lr")
    native.set("schedule.warmup_steps", given["lr.warmup_iters"], "lr.warmup_iters")
    native.set("schedule.first", 1)
    key = "lr.lr_decay_iters" if given.has("lr.lr_decay_iters") else "optimizer.max_iters"
    native.set("schedule.decay_steps", given[key], key)


def _evaluation(given: DialectFile, native: NativeBuilder) -> None:
    size = given["data.batch_size"]
    native.set("evaluate.every", given["eval_interval"], "eval_interval")
    native.set("evaluate.offset", 1, "eval_interval")
    native.set("evaluate.batch_size", size, "data.batch_size")
    native.set("evaluate.samples", given["eval_iters"] * size, "eval_iters", "data.batch_size")
    native.set("evaluate.samples_each", True, "eval_iters")
    native.set("sample.prompts", [])
    native.set("checkpoint.every", given["eval_interval"], "eval_interval")
    native.set("checkpoint.keep", 1)
    native.set("checkpoint.keep_best", True)


def _logging(given: DialectFile, native: NativeBuilder) -> None:
    if not given["logging.wandb_log"]:
        return
    arguments = {"project": given["logging.wandb_project"]}
    keys = ["logging.wandb_log", "logging.wandb_project"]
    if given.has("logging.wandb_entity"):
        arguments["entity"] = given["logging.wandb_entity"]
        keys.append("logging.wandb_entity")
    suffixes = ("logging.wandb_run_name_suffix", "logging.wandb_time_suffix")
    parts = [given[key] for key in suffixes if given.has(key)]
    if parts:
        arguments["name"] = "-".join([RUN_NAME, *parts])
        keys += suffixes
    native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)
