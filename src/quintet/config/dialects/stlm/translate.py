"""SuperTinyLanguageModels as a dialect: the nesting of its files, and the rules that need several keys."""

import copy
from typing import Any

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.recognise import wrapped_in
from quintet.config.dialects.stlm.back import back
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.translate_byte_level import set_byte_level
from quintet.config.dialects.stlm.translate_evaluation import set_evaluation
from quintet.config.dialects.stlm.translate_model import native_sources, set_pretrained, set_tokenizer, set_transformer
from quintet.config.dialects.stlm.translate_training import set_dropout_schedule, set_optimizer, set_schedule
from quintet.config.keypath import KeyPath, is_list, is_mapping, lookup
from quintet.config.merge import merge
from quintet.config.read import YamlDocument

_HELD_OUT = 0.01


def _normalize(document: YamlDocument) -> YamlDocument:
    """Take the file out of a section that holds all of it, and put a list of evaluations into a section."""
    name = wrapped_in(document.values)
    if name is not None:
        inner, beside = document.apart(name)
        inner = _normalize(inner)
        return merge(inner, beside) if beside.values else inner
    path: KeyPath = ("trainer", "eval")
    evaluations = lookup(document.values, path)
    if not is_list(evaluations) or not all(map(is_mapping, evaluations)):
        return document
    single = len(evaluations) == 1 and "evaluator" not in evaluations[0]
    section: dict[str, Any] = evaluations[0] if single else {"evaluators": evaluations}
    provenance = {
        (path if single else (*path, "evaluators")) + known[3 if single else 2 :]
        if known[:2] == path
        else known: origin
        for known, origin in document.provenance.items()
    }
    values = copy.copy(document.values)
    values["trainer"] = values["trainer"] | {"eval": section}
    return YamlDocument(values, {path: document.provenance[path]} | provenance)


def _rules(theirs: File, native: NativeBuilder) -> None:
    if theirs.model.core_model_type == "hf_core":
        set_pretrained(theirs, native)
    else:
        set_transformer(theirs, native)
        set_tokenizer(theirs, native)
    native.set("model.context_length", theirs.model.context_window, "model.context_window")
    _set_data(theirs, native)
    native.set("trainer.kind", "quintet", "trainer.trainer_type")
    set_optimizer(theirs, native)
    set_byte_level(theirs, native)
    set_schedule(theirs, native)
    set_dropout_schedule(theirs, native)
    set_evaluation(theirs, native)
    if native.has("general.device"):
        native.set("train.device", theirs.general.device, "general.device")
    _set_logging(theirs, native)


def _set_data(theirs: File, native: NativeBuilder) -> None:
    trainer, loader = theirs.trainer, "trainer.dataloader.name"
    native.set("data.sources", native_sources(native, trainer.dataset, "trainer.dataset"), "trainer.dataset")
    native.set("data.validation", _HELD_OUT)
    native.set("data.packing.kind", "stream", loader)
    masks = trainer.loss_fn.name == "masked"
    if trainer.dataloader.name == "next_token_mlm" and not masks:
        native.refuse(loader, "next_token_mlm needs loss_fn: next_token_mlm, which hides the tokens")
    if trainer.dataloader.name == "mlm":  # hides tokens, which are the targets of its cross-entropy
        if masks:
            native.refuse(loader, "mlm goes with loss_fn: cross_entropy; set one of the two")
        native.set("loss", {"kind": "masked", "predict_at": "own"}, loader)
    native.set("data.shuffle", True, "trainer.datasampling.name")


def _set_logging(theirs: File, native: NativeBuilder) -> None:
    logging = theirs.general.logging
    if logging.wandb_log:
        settings = {"project": logging.wandb_project, "name": logging.wandb_run_name, "group": logging.group_name}
        arguments = {argument: value for argument, value in settings.items() if value is not None}
        keys = [f"general.logging.{key}" for key in ("wandb_log", "wandb_project", "wandb_run_name", "group_name")]
        native.set("track", [{"kind": "wandb", "arguments": arguments}], *keys)


_STAND_IN = {
    "model.core_model_type": "generic",
    "model.context_window": 1024,
    "trainer.dataset": "tinystories",
    "trainer.batch_size": 1,
    "trainer.gradient_accumulation_steps": 1,
    "trainer.max_iters": 1_000_000,
}
DIALECT = Dialect("stlm", "SuperTinyLanguageModels", File, _rules, _normalize, back, hydra=True, stand_in=_STAND_IN)
