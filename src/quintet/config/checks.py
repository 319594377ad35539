"""Checks of keys of a run file that depend on each other.

A section's own `errors` say which of its keys contradict each other; each check here looks at several sections. All of
them run, so that a user learns every contradiction of a file at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic_core import PydanticCustomError

from quintet.config import deepspeed
from quintet.config.data import DataConfig
from quintet.config.evaluate import EvaluateConfig
from quintet.config.loss import LossConfig, MaskedLossConfig
from quintet.config.model import ModelConfig, TransformerConfig
from quintet.config.optimizer import OptimizerConfig
from quintet.config.packing import MusicPackingConfig
from quintet.config.parallel import ParallelConfig
from quintet.config.schedule import DropoutScheduleConfig, ScheduleConfig, dropout_changes
from quintet.config.section import ConfigErrors, ConfigSection, config_error
from quintet.config.tokenizer import BPETokenizerConfig, IdTokenizerConfig, TokenizerConfig
from quintet.config.train import CheckpointConfig, TrainConfig, steps_of
from quintet.config.trainer import TrainerConfig, trainer_errors


def errors_of(sections: Mapping[str, Any]) -> ConfigErrors:
    """Yield each contradiction in and between ``sections`` of a run file, by their names, at its key.

    A check that needs a section which is not among them is left out.
    """
    for name, section in sections.items():
        yield from _inner_errors(name, section)
    for check in CHECKS:
        names = inspect.signature(check).parameters
        if names.keys() <= {*sections, "sections"}:
            given = {name: sections if name == "sections" else sections[name] for name in names}
            try:
                yield from check(**given)
            except PydanticCustomError:  # a batch that does not add up, which `_batch_adds_up` tells
                continue


def _inner_errors(path: str, value: Any) -> ConfigErrors:
    """Yield the errors of all sections in ``value``, which stands at ``path``."""
    if isinstance(value, ConfigSection):
        for error in value.errors():
            context = error.context or {}
            yield config_error(f"{path}.{context['key']}", context["message"])
        for name in type(value).model_fields:
            yield from _inner_errors(f"{path}.{name}", getattr(value, name))
    elif isinstance(value, tuple):
        for index, element in enumerate(cast("tuple[Any, ...]", value)):
            yield from _inner_errors(f"{path}[{index}]", element)


def _context_holds_a_sample(data: DataConfig, model: ModelConfig) -> ConfigErrors:
    if model.context_length is not None and data.sequence_length > model.context_length:
        yield config_error(
            "data.sequence_length",
            f"{data.sequence_length} tokens are more than model.context_length = {model.context_length}",
        )


def _embedding_has_all_ids(tokenizer: TokenizerConfig, model: ModelConfig) -> ConfigErrors:
    if not isinstance(tokenizer, BPETokenizerConfig) or not isinstance(model, TransformerConfig):
        return
    if model.vocab_size and model.vocab_size < tokenizer.vocab_size:
        yield config_error(
            "model.vocab_size",
            f"{model.vocab_size} rows are fewer than the {tokenizer.vocab_size} ids of tokenizer.kind: bpe; "
            "raise it, or leave it out to take the tokenizer's",
        )


def _rates_are_ordered(schedule: ScheduleConfig, optimizer: OptimizerConfig) -> ConfigErrors:
    if getattr(schedule, "min_lr", 0.0) > optimizer.lr:
        yield config_error("schedule.min_lr", f"is above optimizer.lr = {optimizer.lr}")


def _warmup_fits(schedule: ScheduleConfig, train: TrainConfig) -> ConfigErrors:
    warmup = getattr(schedule, "warmup_steps", 0)
    if train.steps is not None and isinstance(warmup, int) and warmup > train.steps:
        yield config_error("schedule.warmup_steps", f"is more than train.steps = {train.steps}")


def _plateau_is_measured(schedule: ScheduleConfig, evaluate: EvaluateConfig, data: DataConfig) -> ConfigErrors:
    if schedule.kind != "plateau":
        return
    if evaluate.every is None:
        yield config_error("evaluate.every", "must be given: schedule.kind: plateau follows the validation loss")
    if not data.holds_out:
        yield config_error("data.validation", "holds nothing out, and schedule.kind: plateau follows its loss")


def _mask_has_an_id(loss: LossConfig, model: ModelConfig) -> ConfigErrors:
    if isinstance(loss, MaskedLossConfig) and loss.mask_id is None and model.kind == "huggingface":
        yield config_error("loss.mask_id", "must be given: model.kind: huggingface has no row for the mask")


def _padding_is_unseen(model: ModelConfig, data: DataConfig) -> ConfigErrors:
    if _is_bidirectional(model) and not model.tells_documents and data.packing.kind != "stream":
        yield config_error(
            "model.attention.mask",
            f"full sees the padding after short samples, which data.packing.kind: {data.packing.kind} makes; "
            "set it to document",
        )


def _validation_has_data(evaluate: EvaluateConfig, data: DataConfig) -> ConfigErrors:
    if evaluate.only and not data.holds_out:
        yield config_error(
            "evaluate.only", "needs held-out data, and data.validation is 0; give it or validation_sources"
        )
    held_out = data.validation_sources or (data.sources if data.validation else ())
    known = list(dict.fromkeys(source.label for source in held_out if source.label))
    if evaluate.best_by is not None and evaluate.best_by not in known:
        there = ", ".join(known) or "none"
        where = "data.validation_sources" if data.validation_sources else "data.sources and data.validation"
        yield config_error("evaluate.best_by", f"nothing held out of {where} has this label; there are {there}")


def _compiled_once(train: TrainConfig, dropout_schedule: DropoutScheduleConfig, model: ModelConfig) -> ConfigErrors:
    if train.compile is True and dropout_changes(dropout_schedule) and model.kind == "huggingface":
        yield config_error(
            "train.compile",
            "with model.kind: huggingface a rate that changes, of dropout_schedule.kind: "
            f"{dropout_schedule.kind}, would compile the model at every step; set compile: false",
        )


def _spikes_can_be_undone(
    train: TrainConfig, checkpoint: CheckpointConfig, data: DataConfig, trainer: TrainerConfig, parallel: ParallelConfig
) -> ConfigErrors:
    spike, every = train.on_spike, checkpoint.every
    if spike is None:
        return
    if every is None and checkpoint.every_epochs is None:
        yield config_error("train.on_spike", "goes back to a checkpoint, and none is asked for; give checkpoint.every")
    elif train.steps is not None and checkpoint.every_epochs is None and every is not None:
        first = max(spike.window, steps_of(every, train.steps))
        if first >= train.steps:
            yield config_error(
                "train.on_spike",
                f"judges steps after the first checkpoint and {spike.window} losses, which train.steps = {train.steps} "
                f"do not reach; lower {'train.on_spike.window' if spike.window == first else 'checkpoint.every'}",
            )
    if data.fixed_batch:
        yield config_error("train.on_spike", "leaves a batch out, and with data.fixed_batch every step has the same")
    if trainer.kind != "quintet":
        yield config_error("train.on_spike", f"is not done by trainer.kind: {trainer.kind}; leave that out")
    if parallel.kind == "deepspeed":
        yield config_error("train.on_spike", "is not done with parallel.kind: deepspeed; take fsdp")


def _batch_adds_up(train: TrainConfig, data: DataConfig) -> ConfigErrors:
    try:
        train.batch(data.sequence_length)
    except PydanticCustomError as error:
        yield error


def _ids_are_enough(tokenizer: TokenizerConfig, data: DataConfig) -> ConfigErrors:
    """Where the tokenizer has no text, no source has any, and what needs an end id has one."""
    if not isinstance(tokenizer, IdTokenizerConfig):
        return
    for name, sources in (("sources", data.sources), ("validation_sources", data.validation_sources)):
        for index, source in enumerate(sources):
            if source.content != "ids":
                yield config_error(
                    f"data.{name}[{index}]",
                    "holds text, and tokenizer.kind: ids knows none; name another tokenizer, or ids: npy, bin, "
                    "tatm, megatron, store, or rows with document.kind: tokens",
                )
            if tokenizer.end_id is None and getattr(source, "document", None) == "end_id":
                yield config_error("tokenizer.end_id", f"must be given: data.{name}[{index}].document is end_id")
    if tokenizer.end_id is None and getattr(data.packing, "add_bos_eos", False):
        yield config_error("tokenizer.end_id", "must be given: data.packing.add_bos_eos puts it around samples")


def _text_is_modeled(
    evaluate: EvaluateConfig, model: ModelConfig, loss: LossConfig, tokenizer: TokenizerConfig, data: DataConfig
) -> ConfigErrors:
    """The model and its data have what `evaluate.text_modeling` and `text_generation` measure."""
    asked = {"text_modeling": evaluate.text_modeling, "text_generation": evaluate.text_generation}
    reasons = {
        "learns to fill in hidden tokens, with loss.kind: masked": loss.kind == "masked",
        "sees what it is to predict, with model.attention.kind: bidirectional": _is_bidirectional(model),
        "learns from ids that stand for no text, with tokenizer.kind: ids": isinstance(tokenizer, IdTokenizerConfig),
        "learns from music, with data.packing.kind: " + data.packing.kind: isinstance(data.packing, MusicPackingConfig),
    }
    reason = " and ".join(reason for reason, holds in reasons.items() if holds)
    for name in (name for name, section in asked.items() if reason and section is not None):
        yield config_error(f"evaluate.{name}", f"must be null: the model {reason}")
    if evaluate.text_modeling is None:
        return
    if evaluate.text_modeling.path is None and not data.holds_out and not any(reasons.values()):
        yield config_error("evaluate.text_modeling", "needs held-out text: give its path, or data.validation")


def _is_bidirectional(model: ModelConfig) -> bool:
    return isinstance(model, TransformerConfig) and model.attention.kind == "bidirectional"


CHECKS: tuple[Callable[..., ConfigErrors], ...] = (
    _context_holds_a_sample,
    _embedding_has_all_ids,
    _rates_are_ordered,
    _warmup_fits,
    _plateau_is_measured,
    _mask_has_an_id,
    _padding_is_unseen,
    _validation_has_data,
    _compiled_once,
    _spikes_can_be_undone,
    _batch_adds_up,
    _ids_are_enough,
    _text_is_modeled,
    trainer_errors,
    deepspeed.name_errors,
    deepspeed.batch_errors,
    deepspeed.precision_errors,
    deepspeed.optimizer_errors,
    deepspeed.schedule_errors,
)
"""Each yields the contradictions between the sections that its parameters name; ``sections`` are all of them."""
