"""Rules for keys of STLM that depend on each other, what it always does, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from quintet.config.dialects.dialect import Dialect, Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.recognise import wrapped_in
from quintet.config.dialects.stlm.byte_level import byte_level, byte_level_back
from quintet.config.dialects.stlm.evaluation import MODELLING
from quintet.config.dialects.stlm.names import (
    ON_THE_HUB,
    TASKS,
    TIKTOKEN,
    name_of,
    source_of,
)
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.training import optimizer, optimizer_back, rhythm, schedule, schedule_back
from quintet.config.keypath import KeyPath, lookup
from quintet.config.merge import merge
from quintet.config.model import HuggingFaceConfig, ModelConfig, TransformerConfig
from quintet.config.read import YamlDocument
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.config.tokenizer import BPETokenizerConfig, HuggingFaceTokenizerConfig, TiktokenTokenizerConfig

RMS_EPS, LAYER_EPS = 1e-6, 1e-5
HELD_OUT, NEVER = 0.01, 10**9
HEADS = ("model.attn.num_q_heads", "model.attn.num_kv_heads")
NEEDED = ("num_layers", "hidden_dim", "ffn.ffn_dim", "tokenizer_type")
OF_BPE = ("tokenizer_dataset_name", "tokenizer_simplify", "tokenizer_num_reserved_tokens")
OF_HF = ("model_string", "freeze_core", "use_lora", "lora_targets")
OF_EITHER = ("core_model_type", "context_window", "model_shell_type", "flash_attention", "embedding_model_type")
OF_EITHER += ("lm_head_type", "tokenizer_type", *OF_BPE)
OF_INIT = {"gain": "xavier", "mode": "kaiming", "nonlinearity": "kaiming"}


def _shape(document: YamlDocument) -> YamlDocument:
    """``document`` taken out of a section that holds all of it, with a section for a list of evaluations."""
    name = wrapped_in(document.values)
    if name is not None:
        inner, beside = document.apart(name)
        inner = _shape(inner)
        return merge(inner, beside) if beside.values else inner
    at: KeyPath = ("trainer", "eval")
    found = lookup(document.values, at)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return document
    single = len(found) == 1 and "evaluator" not in found[0]
    section = found[0] if single else {"evaluators": found}
    provenance = {
        (at if single else (*at, "evaluators")) + path[3 if single else 2 :] if path[:2] == at else path: origin
        for path, origin in document.provenance.items()
    }
    values = copy.copy(document.values)
    values["trainer"] = values["trainer"] | {"eval": section}
    return YamlDocument(values, {at: document.provenance[at]} | provenance)


def _rules(theirs: File, native: NativeBuilder) -> None:
    trainer = theirs.trainer
    if theirs.model.core_model_type == "hf_core":
        _pretrained(theirs, native)
    else:
        _transformer(theirs, native)
        _tokenizer(theirs, native)
    native.set("model.context_length", theirs.model.context_window, "model.context_window")
    native.set("data.sources", _sources(native, trainer.dataset, "trainer.dataset"), "trainer.dataset")
    native.set("data.validation", HELD_OUT)
    native.set("data.packing.kind", "stream", "trainer.dataloader.name")
    if trainer.dataloader.name == "mlm" and trainer.loss_fn.name != "masked":
        native.refuse("trainer.dataloader.name", "next_token_mlm needs loss_fn: next_token_mlm, which hides the tokens")
    native.set("data.shuffle", True, "trainer.datasampling.name")
    native.set("trainer.kind", "quintet", "trainer.trainer_type")
    optimizer(theirs, native)
    byte_level(theirs, native)
    schedule(theirs, native)
    if trainer.dropout_scheduler.dropout_type in ("linear", "triangle"):
        native.set("dropout_schedule.first", 0, "trainer.dropout_scheduler.dropout_type")
    rhythm(theirs, native)
    if native.has("general.device"):
        native.set("train.device", theirs.general.device, "general.device")
    _logging(theirs, native)


def _sources(native: NativeBuilder, names: Iterable[str], key: str) -> list[dict[str, Any]]:
    """The native sources of the datasets ``names``, which ``key`` gives."""
    found = []
    for name in names:
        try:
            found.append(source_of(name))
        except ValueError as error:
            native.refuse(key, str(error))
    return found


def _transformer(theirs: File, native: NativeBuilder) -> None:
    model = theirs.model
    native.set("model.kind", "transformer", "model.core_model_type", "model.model_shell_type")
    for name in OF_HF:
        if native.has(f"model.{name}"):
            native.refuse(f"model.{name}", "is for core_model_type: hf_core; leave it out")
    for key, part in (("embedding_model_type", model.embedding_model_type), ("lm_head_type", model.lm_head_type)):
        if part.startswith("hf_"):
            native.refuse(f"model.{key}", f"{part} goes with core_model_type: hf_core alone; set generic")
    missing = [name for name in NEEDED if not native.has(f"model.{name}")]
    if not any(map(native.has, HEADS)):
        missing.append("attn.num_kv_heads")
    for name in missing:
        native.refuse(f"model.{name}", "is missing: core_model_type: generic needs it")
    if missing:
        return
    _attention(theirs, native)
    if model.ffn.ffn_type == "gated":
        native.set("model.feedforward.activation", "silu", "model.ffn.ffn_type")
        if native.has("model.ffn.activation") and model.ffn.activation != "silu":
            native.say("model.ffn.activation: ffn_type: silu_ffn has silu, whatever it says")
    _norms(theirs, native)
    _position(theirs, native)
    for name, owner in OF_INIT.items():
        if owner == model.initialization_fn:
            native.set(f"model.init.{name}", getattr(model, name), f"model.{name}")
        elif native.has(f"model.{name}"):
            message = f"is for initialization_fn: {owner}, and it is {model.initialization_fn}; leave it out"
            native.refuse(f"model.{name}", message)


def _attention(theirs: File, native: NativeBuilder) -> None:
    attn = theirs.model.attn
    kind, causal = attn.attn_type, attn.is_causal
    if causal is not None and kind in ("causal", "bidirectional") and causal != (kind == "causal"):
        native.refuse("model.attn.is_causal", f"contradicts attn_type: {kind}; keep one of the two")
    both = kind == "bidirectional" or (causal is False and kind != "causal")
    keys = ("model.attn.attn_type", "model.attn.is_causal")
    native.set("model.attention.kind", "bidirectional" if both else "causal", *keys)
    if both and theirs.trainer.loss_fn.name == "next_token":
        native.say(
            "model.attn: attends to later positions too, and with loss_fn: cross_entropy the next token is among "
            "them; next_token_mlm hides what is to be predicted"
        )
    counts = [count for count in (attn.num_q_heads, attn.num_kv_heads) if count is not None]
    heads, kv_heads = max(counts), min(counts)
    if attn.group_size is not None:
        if len(counts) == 2 and heads != kv_heads * attn.group_size:
            message = f"{attn.group_size} is not {heads} heads by {kv_heads}; keep one of them"
            native.refuse("model.attn.group_size", message)
        elif heads % attn.group_size:
            native.refuse("model.attn.group_size", f"{attn.group_size} does not divide the {heads} heads")
        kv_heads = max(1, heads // attn.group_size)
    native.set("model.attention.heads", heads, *HEADS)
    native.set("model.attention.kv_heads", kv_heads, *reversed(HEADS))
    if len(counts) == 2 and counts[0] < counts[1]:
        native.say(f"model.attn: {heads} query heads and {kv_heads} key and value heads; STLM's code had them swapped")
    if theirs.model.flash_attention:
        native.set("model.attention.backend", "flash", "model.flash_attention")


def _norms(theirs: File, native: NativeBuilder) -> None:
    """One norm for the model where its three parts have the same, else one for each."""
    model, ffn, attn = theirs.model, theirs.model.ffn, theirs.model.attn
    usual = _norm(attn.normalization, attn.bias)
    native.set("model.norm", usual, "model.attn.normalization", "model.attn.bias")
    feedforward, head = _norm(ffn.normalization, ffn.bias), _norm(model.lm_head_normalization, model.lm_head_bias)
    if feedforward != usual:
        native.set("model.feedforward.norm", feedforward, "model.ffn.normalization", "model.ffn.bias")
    if head != usual:
        native.set("model.head.norm", head, "model.lm_head_normalization", "model.lm_head_bias")


def _norm(kind: str, bias: bool) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {"rms": {"eps": RMS_EPS}, "layer": {"eps": LAYER_EPS, "bias": bias}}
    return {"kind": kind, **values.get(kind, {})}


def _position(theirs: File, native: NativeBuilder) -> None:
    key, kind = "model.positional_encoding_type", theirs.model.positional_encoding_type
    turned = theirs.model.attn.attn_type == "rope"  # attention turns queries and keys itself
    if kind is None and not turned:
        native.refuse(key, "is missing: core_model_type: generic needs it")
    elif turned and kind == "sinusoidal":
        native.refuse(key, "sincos does not go with attn: rope_attention here; set none or learned")
    elif not turned and kind != "rope":
        native.set("model.position", {"kind": kind}, key)
    else:
        rope = {"kind": "rope", "theta": 10_000.0, "pairs": "interleaved", "learned": kind == "learned"}
        native.set("model.position", rope, "model.attn.attn_type" if turned else key)


def _pretrained(theirs: File, native: NativeBuilder) -> None:
    model = theirs.model
    if model.model_string is None:
        native.refuse("model.model_string", "is missing: core_model_type: hf_core needs the name of a checkpoint")
        return
    native.set("model", {"kind": "huggingface"}, "model.core_model_type")  # in place of what a transformer has
    native.set("model.name_or_path", model.model_string, "model.model_string")
    if model.use_lora:
        native.set("model.lora", {"rank": 8, "alpha": 32.0, "dropout": 0.1}, "model.use_lora")
        if model.lora_targets is not None:
            native.set("model.lora.targets", list(model.lora_targets), "model.lora_targets")
    elif model.freeze_core:
        native.set("model.freeze", "core", "model.freeze_core")
    if model.flash_attention:
        native.set("model.attention_backend", "flash_attention_2", "model.flash_attention")
    unread = [key for key in native.within("model") if key.removeprefix("model.") not in (*OF_HF, *OF_EITHER)]
    if unread:
        native.say(f"{', '.join(unread)}: the checkpoint of core_model_type: hf_core says this itself")
    if model.embedding_model_type == "generic" or model.lm_head_type == "generic":
        native.say("model: embedding and head are those of the checkpoint, and learn also where its core is frozen")
    if model.tokenizer_type in (None, "hf") or model.embedding_model_type == "hf_embedder":
        native.set("tokenizer", {"kind": "huggingface", "path": model.model_string}, "model.model_string")
    else:
        _tokenizer(theirs, native)


def _tokenizer(theirs: File, native: NativeBuilder) -> None:
    model, key = theirs.model, "model.tokenizer_type"
    kind, rows, generic = model.tokenizer_type, model.vocab_size, model.core_model_type == "generic"
    if generic and rows is not None:
        native.set("model.vocab_size", rows, "model.vocab_size")
    if kind == "hf":
        native.refuse(key, "is the tokenizer of the checkpoint of core_model_type: hf_core; name another one")
    elif kind == "bpe" and rows is None:
        native.refuse("model.vocab_size", "is missing: tokenizer_type: bpe needs it")
    elif kind == "bpe" and rows is not None:
        native.set("tokenizer.kind", "bpe", key)
        size = rows - model.tokenizer_num_reserved_tokens
        native.set("tokenizer.vocab_size", size, "model.vocab_size", "model.tokenizer_num_reserved_tokens")
        native.set("tokenizer.simplify", model.tokenizer_simplify, "model.tokenizer_simplify")
        names, path = model.tokenizer_dataset_name, "model.tokenizer_dataset_name"
        if names is not None and names != theirs.trainer.dataset:
            native.set("tokenizer.sources", _sources(native, names, path), path)
    elif kind in TIKTOKEN:
        native.set("tokenizer", {"kind": "tiktoken", "name": kind}, key)
    elif kind in ON_THE_HUB:
        native.set("tokenizer", {"kind": "huggingface", "path": ON_THE_HUB[kind]}, key)
    unread = [f"model.{name}" for name in OF_BPE if kind not in (None, "bpe") and native.has(f"model.{name}")]
    if unread:
        native.say(f"{', '.join(unread)}: read with tokenizer_type: bpe alone")


def _logging(theirs: File, native: NativeBuilder) -> None:
    logging, name = theirs.general.logging, theirs.general.logging.wandb_run_name
    if name is not None:
        native.set("name", name.replace("/", "-").replace("\\", "-"), "general.logging.wandb_run_name")
    if logging.wandb_log:
        named = {"project": logging.wandb_project, "name": name, "group": logging.group_name}
        arguments = {argument: value for argument, value in named.items() if value is not None}
        keys = [f"general.logging.{key}" for key in ("wandb_log", "wandb_project", "wandb_run_name", "group_name")]
        native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)


def _back(config: RunConfig, put: Put) -> None:
    micro, evaluate = config.batch.micro_batch_size, config.evaluate
    values = {
        "trainer.dataset": _names(config.data.sources),
        "trainer.batch_size": micro,
        "trainer.gradient_accumulation_steps": config.batch.accumulation,
        "trainer.optimizer.grad_clip": config.train.clip_norm or 0.0,
        "trainer.eval_interval": NEVER if evaluate.every is None else evaluate.every,
        "trainer.eval.dataset_loss_eval_iters": evaluate.samples and max(1, evaluate.samples // micro),
        "trainer.eval.mcq_benchmarks": [task for task in evaluate.tasks if task in TASKS] or None,
        MODELLING: evaluate.text_modeling is not None,
        "trainer.checkpoint_interval": NEVER if config.checkpoint.every is None else config.checkpoint.every,
        "general.device": None if config.train.device == "auto" else config.train.device,
        "general.logging.wandb_run_name": config.name,
    }
    for track in config.track:
        if track.kind == "wandb":
            values |= {"general.logging.wandb_log": True}
            values |= {"general.logging.wandb_project": track.arguments.get("project", config.name)}
    values |= _model_back(config.model) | _tokenizer_back(config) | optimizer_back(config) | schedule_back(config)
    for path, value in (values | byte_level_back(config)).items():
        if value is not None:
            put(path, value)


def _names(sources: Iterable[SourceConfig]) -> str | list[str]:
    """The names of ``sources``, one of them by itself."""
    names = [name for name in map(name_of, sources) if name is not None]
    return names if len(names) > 1 else names[0] if names else "???"


def _tokenizer_back(config: RunConfig) -> dict[str, Any]:
    tokenizer = config.tokenizer
    rows = config.model.vocab_size if isinstance(config.model, TransformerConfig) else None
    values: dict[str, Any] = {"model.tokenizer_type": "???", "model.vocab_size": rows}
    if isinstance(tokenizer, TiktokenTokenizerConfig):
        values["model.tokenizer_type"] = tokenizer.name
    elif isinstance(tokenizer, HuggingFaceTokenizerConfig):
        known = [name for name, hub in ON_THE_HUB.items() if hub == tokenizer.path]
        values["model.tokenizer_type"] = known[0] if known else "hf"
    elif isinstance(tokenizer, BPETokenizerConfig):
        values = {
            "model.tokenizer_type": "bpe",
            "model.vocab_size": rows or tokenizer.vocab_size,
            "model.tokenizer_simplify": tokenizer.simplify,
            "model.tokenizer_dataset_name": _names(tokenizer.sources) if tokenizer.sources else None,
            "model.tokenizer_num_reserved_tokens": rows and rows - tokenizer.vocab_size,
        }
    return values


def _model_back(model: ModelConfig) -> dict[str, Any]:
    if isinstance(model, HuggingFaceConfig):
        values = {
            "core_model_type": "hf_core",
            "model_string": model.name_or_path,
            "embedding_model_type": "hf_embedder",
            "lm_head_type": "hf_head",
            "freeze_core": model.freeze == "core",
            "use_lora": True if model.lora else None,
            "lora_targets": model.lora and model.lora.targets,
            "flash_attention": True if model.attention_backend == "flash_attention_2" else None,
        }
    else:
        values = {
            "core_model_type": "generic",
            "lm_head_normalization": model.last_norm.kind,
            "positional_encoding_type": model.position.kind,
            "ffn.ffn_dim": model.hidden,
            "ffn.normalization": model.feedforward_norm.kind,
            "attn.attn_type": model.attention.kind,
            "attn.num_q_heads": model.heads,
            "attn.num_kv_heads": model.kv_heads,
            "attn.normalization": model.attention_norm.kind,
            **{name: getattr(model.init, name, None) for name in OF_INIT},
        }
    return {f"model.{name}": value for name, value in values.items()}


_STAND_IN = {"trainer.dataset": "tinystories"}
DIALECT = Dialect("stlm", "SuperTinyLanguageModels", File, _rules, _shape, _back, hydra=True, stand_in=_STAND_IN)
