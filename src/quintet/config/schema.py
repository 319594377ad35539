"""The run file: one frozen, typed description of a run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from pydantic import ModelWrapValidatorHandler, ValidationError, create_model, model_validator

from quintet.config.checks import errors_of
from quintet.config.data import DataConfig
from quintet.config.deepspeed import given_by_deepspeed
from quintet.config.evaluate import EvaluateConfig
from quintet.config.generation import SampleConfig
from quintet.config.keypath import is_mapping
from quintet.config.loss import LossConfig, NextTokenLossConfig
from quintet.config.model import ModelConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig, OptimizerConfig
from quintet.config.parallel import AutoParallelConfig, ParallelConfig
from quintet.config.schedule import (
    CosineConfig,
    DropoutScheduleConfig,
    NoDropoutScheduleConfig,
    ScheduleConfig,
)
from quintet.config.section import ConfigSection, again, deferred_errors, key, raise_errors
from quintet.config.tokenizer import BPETokenizerConfig, TokenizerConfig
from quintet.config.track import TrackConfig
from quintet.config.train import BatchShape, CheckpointConfig, TrainConfig
from quintet.config.trainer import QuintetTrainerConfig, TrainerConfig
from quintet.errors import nearest


class RunConfig(ConfigSection):
    """One run, from its data to its trackers."""

    name: str = key(
        ...,
        "name of the run and of its folder; the run file's own name when not given",
        min_length=1,
        pattern=r"^[^/\\]+$",
    )
    seed: int = key(1337, "everything random follows from it", unit="seed", ge=0)
    runs_dir: str = key("runs", "folder in which the run's folder is made", min_length=1)
    other_inputs: bool = key(
        False,
        "go on with the run, or use it, although an input that it reads each time, such as the tokenizer in its "
        "folder, is not by its digest the one that it began with",
    )
    data: DataConfig = key(..., "what to read and how to cut it")
    tokenizer: TokenizerConfig = key(BPETokenizerConfig(), "how text becomes token ids")
    model: ModelConfig = key(TransformerConfig(), "what is trained")
    loss: LossConfig = key(NextTokenLossConfig(), "what the model learns to predict")
    optimizer: OptimizerConfig = key(AdamWConfig(), "how gradients change the weights")
    schedule: ScheduleConfig = key(CosineConfig(), "how the learning rate changes over the steps")
    dropout_schedule: DropoutScheduleConfig = key(
        NoDropoutScheduleConfig(), "how the rate of every dropout changes over the steps"
    )
    train: TrainConfig = key(..., "how long, in which batches, on what hardware")
    trainer: TrainerConfig = key(QuintetTrainerConfig(), "whose loop takes the steps")
    parallel: ParallelConfig = key(AutoParallelConfig(), "how the work is spread over devices")
    evaluate: EvaluateConfig = key(EvaluateConfig(), "validation during training")
    sample: SampleConfig = key(SampleConfig(), "texts written during training")
    checkpoint: CheckpointConfig = key(CheckpointConfig(), "what is kept to continue and to use the run")
    track: tuple[TrackConfig, ...] = key((), "where metrics go besides the console and metrics.jsonl")

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise one error with all mistakes of single keys and all those of several keys together."""
        values, refused = _completed(values), []
        with deferred_errors():
            try:
                config = handler(values)
                sections = {name: getattr(config, name) for name in cls.model_fields}
            except ValidationError as error:
                config, refused = None, error.errors(include_url=False)
                sections = cls._sound_sections(values, {str(detail["loc"][0]) for detail in refused if detail["loc"]})
        raise_errors(cls.__name__, errors_of(sections), map(again, refused))
        assert config is not None
        return config

    @classmethod
    def _sound_sections(cls, values: Any, unsound: Collection[str]) -> dict[str, Any]:
        """The sections of ``values`` that are not ``unsound``, by name, without those that a misspelt key may mean."""
        if not is_mapping(values) or not unsound:
            return {}
        left_out = {*unsound, *(nearest(name, cls.model_fields) for name in unsound)}
        fields: dict[str, Any] = {
            name: (field.annotation, field) for name, field in cls.model_fields.items() if name not in left_out
        }
        sound = create_model("Sound", __base__=ConfigSection, **fields)
        found = sound.model_validate({name: value for name, value in values.items() if name in fields})
        return {name: getattr(found, name) for name in fields}

    @property
    def validation_batch_size(self) -> int:
        """Samples in one forward pass of a validation."""
        return self.evaluate.batch_size or self.batch.micro_batch_size

    @property
    def batch(self) -> BatchShape:
        """The batch that ``train`` asks for, whichever of its keys say so."""
        return self.train.batch(self.data.sequence_length)

    @property
    def passes_each(self) -> int:
        """Passes of a step on each of the devices that the batch is counted for."""
        return self.batch.accumulation // (self.train.batch_devices or 1)

    def on_devices(self, devices: int) -> RunConfig:
        """This run as it starts on ``devices``: where ``train`` says the batch of each, they settle the whole batch."""
        train = self.train
        if train.batch_size_per_device is None or train.batch_devices is not None:
            return self
        return self.model_copy(update={"train": train.model_copy(update={"batch_devices": devices})})


def _completed(values: Any) -> Any:
    """``values`` of a run file with what follows from others: a model of the transformers library has a tokenizer, and
    what a ds_config says need not be said again."""
    model = values.get("model") if is_mapping(values) else None
    if is_mapping(model) and model.get("kind") == "huggingface" and "tokenizer" not in values:
        own = {"kind": "huggingface", "path": model.get("name_or_path"), "revision": model.get("revision")}
        values = {**values, "tokenizer": own}
    return given_by_deepspeed(values)
