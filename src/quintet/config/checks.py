"""Checks of contradictions between sections of a run file.

Contradictions within a section are found by its `errors`. All checks run, so that all contradictions of a file are
reported together.
"""

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
    """Yield an error for each contradiction in and between ``sections`` of a run file, which are given by name.

    A check that needs another section is skipped.
    """
    for name, section in sections.items():
        yield from _inner_errors(name, section)
    for check in CHECKS:
        names = inspect.signature(check).parameters
        if names.keys() <= {*sections, "sections"}:
            arguments = {name: sections if name == "sections" else sections[name] for name in names}
            try:
                yield from check(**arguments)
            except PydanticCustomError:  # a contradictory batch, which `_batch_adds_up` reports
                continue


def _inner_errors(path: str, value: Any) -> ConfigErrors:
    """Yield the errors of all sections in ``value``, the value at ``path``."""
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
            "raise it, or remove it to take the tokenizer's",
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
        yield config_error("evaluate.every", "must be set: schedule.kind: plateau follows the validation loss")
    if not data.holds_out:
        yield config_error("data.validation", "holds nothing out, and schedule.kind: plateau follows its loss")


def _mask_has_an_id(loss: LossConfig, model: ModelConfig) -> ConfigErrors:
    if isinstance(loss, MaskedLossConfig) and loss.mask_id is None and model.kind == "huggingface":
        yield config_error("loss.mask_id", "must be set: model.kind: huggingface has no row for the mask")


def _padding_is_unseen(model: ModelConfig, data: DataConfig) -> ConfigErrors:
    if _is_bidirectional(model) and not model.tells_documents and data.packing.kind != "stream":
        yield config_error(
            "model.attention.mask",
            f"full attends to the padding of short samples, which data.packing.kind: {data.packing.kind} makes; "
            "set it to document",
        )


def _validation_has_data(evaluate: EvaluateConfig, data: DataConfig) -> ConfigErrors:
    if evaluate.only and not data.holds_out:
        yield config_error(
            "evaluate.only", "needs held-out data, and data.validation is 0; set it, or data.validation_sources"
        )
    held_out = data.validation_sources or (data.sources if data.validation else ())
    known = list(dict.fromkeys(source.label for source in held_out if source.label))
    if evaluate.best_by is not None and evaluate.best_by not in known:
        there = ", ".join(known) or "none"
        where = "data.validation_sources" if data.validation_sources else "data.sources and data.validation"
        yield config_error("evaluate.best_by", f"no held-out source in {where} has this label; there are {there}")


def _compiled_once(train: TrainConfig, dropout_schedule: DropoutScheduleConfig, model: ModelConfig) -> ConfigErrors:
    if train.compile is True and dropout_changes(dropout_schedule) and model.kind == "huggingface":
        yield config_error(
            "train.compile",
            f"with model.kind: huggingface, dropout_schedule.kind: {dropout_schedule.kind} changes the rate and would "
            "compile the model at each step; set train.compile: false",
        )


def _spikes_can_be_undone(
    train: TrainConfig, checkpoint: CheckpointConfig, data: DataConfig, trainer: TrainerConfig, parallel: ParallelConfig
) -> ConfigErrors:
    spike, every = train.on_spike, checkpoint.every
    if spike is None:
        return
    if every is None and checkpoint.every_epochs is None:
        yield config_error("train.on_spike", "goes back to a checkpoint, and none is written; set checkpoint.every")
    elif train.steps is not None and checkpoint.every_epochs is None and every is not None:
        first = max(spike.window, steps_of(every, train.steps))
        if first >= train.steps:
            yield config_error(
                "train.on_spike",
                f"needs a checkpoint and {spike.window} losses before it can judge a step, which train.steps = "
                f"{train.steps} does not reach; lower "
                f"{'train.on_spike.window' if spike.window == first else 'checkpoint.every'}",
            )
    if data.fixed_batch:
        yield config_error(
            "train.on_spike", "skips a batch, and with data.fixed_batch all steps have the same; remove one of the two"
        )
    if trainer.kind != "quintet":
        yield config_error("train.on_spike", f"is not supported by trainer.kind: {trainer.kind}; remove one of the two")
    if parallel.kind == "deepspeed":
        yield config_error("train.on_spike", "is not supported by parallel.kind: deepspeed; set fsdp")


def _batch_adds_up(train: TrainConfig, data: DataConfig) -> ConfigErrors:
    try:
        train.batch(data.sequence_length)
    except PydanticCustomError as error:
        yield error


def _ids_are_enough(tokenizer: TokenizerConfig, data: DataConfig) -> ConfigErrors:
    """With tokenizer.kind: ids all sources hold ids, and there is an end id if a key needs one."""
    if not isinstance(tokenizer, IdTokenizerConfig):
        return
    for name, sources in (("sources", data.sources), ("validation_sources", data.validation_sources)):
        for index, source in enumerate(sources):
            if source.content != "ids":
                yield config_error(
                    f"data.{name}[{index}]",
                    "holds text, which tokenizer.kind: ids cannot encode; set another tokenizer, or a source of ids: "
                    "npy, bin, tatm, megatron, store, or rows with document.kind: tokens",
                )
            if tokenizer.end_id is None and getattr(source, "document", None) == "end_id":
                yield config_error("tokenizer.end_id", f"must be set: data.{name}[{index}].document is end_id")
    if tokenizer.end_id is None and getattr(data.packing, "add_bos_eos", False):
        yield config_error("tokenizer.end_id", "must be set: data.packing.add_bos_eos puts it around samples")


def _text_is_modeled(
    evaluate: EvaluateConfig, model: ModelConfig, loss: LossConfig, tokenizer: TokenizerConfig, data: DataConfig
) -> ConfigErrors:
    """The model and its data are of a kind that `evaluate.text_modeling` and `text_generation` can measure."""
    measurements = {"text_modeling": evaluate.text_modeling, "text_generation": evaluate.text_generation}
    reasons = {
        "learns to fill in hidden tokens, with loss.kind: masked": loss.kind == "masked",
        "attends to the tokens that it predicts, with model.attention.kind: bidirectional": _is_bidirectional(model),
        "learns from ids without text, with tokenizer.kind: ids": isinstance(tokenizer, IdTokenizerConfig),
        "learns from music, with data.packing.kind: " + data.packing.kind: isinstance(data.packing, MusicPackingConfig),
    }
    reason = " and ".join(reason for reason, holds in reasons.items() if holds)
    for name in (name for name, section in measurements.items() if reason and section is not None):
        yield config_error(f"evaluate.{name}", f"must be null: the model {reason}")
    if evaluate.text_modeling is None:
        return
    if evaluate.text_modeling.path is None and not data.holds_out and not any(reasons.values()):
        yield config_error("evaluate.text_modeling", "needs held-out text; set its path, or data.validation")


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
"""The checks. The names of a check's parameters are the sections that it reads; ``sections`` stands for all of them."""
