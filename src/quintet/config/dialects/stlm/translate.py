"""Rules for keys of STLM that depend on each other, what it always does, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from quintet.config.dialects.dialect import Dialect, Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.recognise import wrapped_in
from quintet.config.dialects.stlm.byte_level import byte_level, byte_level_back
from quintet.config.dialects.stlm.evaluation import MODELLING
from quintet.config.dialects.stlm.model import OF_INIT, pretrained, sources, tokenizer, transformer
from quintet.config.dialects.stlm.names import (
    ON_THE_HUB,
    TASKS,
    names_of,
)
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.training import (
    dropout_schedule,
    optimizer,
    optimizer_back,
    rhythm,
    schedule,
    schedule_back,
)
from quintet.config.keypath import KeyPath, is_list, is_mapping, lookup
from quintet.config.loss import LossConfig, MaskedLossConfig
from quintet.config.merge import merge
from quintet.config.model import HuggingFaceConfig, ModelConfig, TransformerConfig
from quintet.config.read import YamlDocument
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.config.tokenizer import BPETokenizerConfig, HuggingFaceTokenizerConfig, TiktokenTokenizerConfig

HELD_OUT, NEVER = 0.01, 10**9


def _shape(document: YamlDocument) -> YamlDocument:
    """``document`` taken out of a section that holds all of it, with a section for a list of evaluations."""
    name = wrapped_in(document.values)
    if name is not None:
        inner, beside = document.apart(name)
        inner = _shape(inner)
        return merge(inner, beside) if beside.values else inner
    at: KeyPath = ("trainer", "eval")
    found = lookup(document.values, at)
    if not is_list(found) or not all(map(is_mapping, found)):
        return document
    single = len(found) == 1 and "evaluator" not in found[0]
    section: dict[str, Any] = found[0] if single else {"evaluators": found}
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
        pretrained(theirs, native)
    else:
        transformer(theirs, native)
        tokenizer(theirs, native)
    native.set("model.context_length", theirs.model.context_window, "model.context_window")
    native.set("data.sources", sources(native, trainer.dataset, "trainer.dataset"), "trainer.dataset")
    native.set("data.validation", HELD_OUT)
    native.set("data.packing.kind", "stream", "trainer.dataloader.name")
    if trainer.dataloader.name == "next_token_mlm" and trainer.loss_fn.name != "masked":
        native.refuse("trainer.dataloader.name", "next_token_mlm needs loss_fn: next_token_mlm, which hides the tokens")
    if trainer.dataloader.name == "mlm":  # it hides tokens and makes the hidden ones the targets of a cross-entropy
        if trainer.loss_fn.name == "masked":
            native.refuse("trainer.dataloader.name", "mlm goes with loss_fn: cross_entropy; set one of the two")
        native.set("loss", {"kind": "masked", "predict_at": "own"}, "trainer.dataloader.name")
    native.set("data.shuffle", True, "trainer.datasampling.name")
    native.set("trainer.kind", "quintet", "trainer.trainer_type")
    optimizer(theirs, native)
    byte_level(theirs, native)
    schedule(theirs, native)
    dropout_schedule(theirs, native)
    rhythm(theirs, native)
    if native.has("general.device"):
        native.set("train.device", theirs.general.device, "general.device")
    _logging(theirs, native)


def _logging(theirs: File, native: NativeBuilder) -> None:
    logging, name = theirs.general.logging, theirs.general.logging.wandb_run_name
    if name is not None:
        native.set("name", name, "general.logging.wandb_run_name")
    if logging.wandb_log:
        named = {"project": logging.wandb_project, "name": name, "group": logging.group_name}
        arguments = {argument: value for argument, value in named.items() if value is not None}
        keys = [f"general.logging.{key}" for key in ("wandb_log", "wandb_project", "wandb_run_name", "group_name")]
        native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)


def _back(config: RunConfig, put: Put) -> None:
    micro, evaluate = config.batch.micro_batch_size, config.evaluate
    values = {
        "trainer.dataset": _names(config.data.sources),
        "trainer.dataloader.name": "mlm" if _hides(config.loss) else None,
        "trainer.loss_fn.name": "next_token" if _hides(config.loss) else None,
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


def _hides(loss: LossConfig) -> bool:
    """True if tokens are hidden and predicted at their own positions, which STLM's data loader does."""
    return isinstance(loss, MaskedLossConfig) and loss.predict_at == "own"


def _names(sources: Sequence[SourceConfig]) -> str | list[str]:
    """The names of ``sources``, one of them by itself."""
    names = names_of(sources)
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


_STAND_IN = {
    "model.core_model_type": "generic",
    "model.context_window": 1024,
    "trainer.dataset": "tinystories",
    "trainer.batch_size": 1,
    "trainer.gradient_accumulation_steps": 1,
    "trainer.max_iters": 1_000_000,
}
DIALECT = Dialect("stlm", "SuperTinyLanguageModels", File, _rules, _shape, _back, hydra=True, stand_in=_STAND_IN)
