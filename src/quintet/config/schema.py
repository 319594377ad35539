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
from quintet.config.schedule import CosineConfig, DropoutScheduleConfig, NoDropoutScheduleConfig, ScheduleConfig
from quintet.config.section import ConfigSection, deferred_errors, init_error, key, raise_errors
from quintet.config.tokenizer import BPETokenizerConfig, TokenizerConfig
from quintet.config.track import TrackConfig
from quintet.config.train import BatchShape, CheckpointConfig, TrainConfig
from quintet.config.trainer import QuintetTrainerConfig, TrainerConfig
from quintet.errors import nearest


class RunConfig(ConfigSection):
    """One run, from its data to its trackers."""

    name: str = key(
        ...,
        "name of the run and of its folder; the name of the run file when not given",
        min_length=1,
        pattern=r"^[^/\\]+$",
    )
    seed: int = key(1337, "seed of all random numbers", unit="seed", ge=0)
    runs_dir: str = key("runs", "folder of the run folders", min_length=1)
    other_inputs: bool = key(
        False,
        "continue or use the run although the digest of an input, such as the tokenizer in its folder, is not the one "
        "that the run started with",
    )
    data: DataConfig = key(..., "documents to read, and how they become samples")
    tokenizer: TokenizerConfig = key(BPETokenizerConfig(), "how text becomes token ids")
    model: ModelConfig = key(TransformerConfig(), "model to train")
    loss: LossConfig = key(NextTokenLossConfig(), "training objective")
    optimizer: OptimizerConfig = key(AdamWConfig(), "optimizer")
    schedule: ScheduleConfig = key(CosineConfig(), "learning rate as a function of the step")
    dropout_schedule: DropoutScheduleConfig = key(
        NoDropoutScheduleConfig(), "rate of all dropouts as a function of the step"
    )
    train: TrainConfig = key(..., "length of the run, batches and hardware")
    trainer: TrainerConfig = key(QuintetTrainerConfig(), "library whose loop takes the steps")
    parallel: ParallelConfig = key(AutoParallelConfig(), "distribution over devices")
    evaluate: EvaluateConfig = key(EvaluateConfig(), "validation and benchmarks during training")
    sample: SampleConfig = key(SampleConfig(), "texts that the model writes during training")
    checkpoint: CheckpointConfig = key(CheckpointConfig(), "checkpoints, from which the run is continued and used")
    track: tuple[TrackConfig, ...] = key((), "trackers of metrics besides the console and metrics.jsonl")

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate; raise one error with all mistakes of single keys and all contradictions between keys."""
        values, refused = _completed(values), []
        with deferred_errors():
            try:
                config = handler(values)
                sections = {name: getattr(config, name) for name in cls.model_fields}
            except ValidationError as error:
                config, refused = None, error.errors(include_url=False)
                sections = cls._sound_sections(values, {str(detail["loc"][0]) for detail in refused if detail["loc"]})
        raise_errors(cls.__name__, errors_of(sections), map(init_error, refused))
        assert config is not None
        return config

    @classmethod
    def _sound_sections(cls, values: Any, unsound: Collection[str]) -> dict[str, Any]:
        """Return the valid sections of ``values`` by name: none that is ``unsound`` or that a misspelt key may stand
        for."""
        if not is_mapping(values) or not unsound:
            return {}
        skipped = {*unsound, *(nearest(name, cls.model_fields) for name in unsound)}
        fields: dict[str, Any] = {
            name: (field.annotation, field) for name, field in cls.model_fields.items() if name not in skipped
        }
        model = create_model("Sound", __base__=ConfigSection, **fields)
        sections = model.model_validate({name: value for name, value in values.items() if name in fields})
        return {name: getattr(sections, name) for name in fields}

    @property
    def validation_batch_size(self) -> int:
        """Samples in one forward pass of a validation."""
        return self.evaluate.batch_size or self.batch.micro_batch_size

    @property
    def batch(self) -> BatchShape:
        """The batch that ``train`` defines."""
        return self.train.batch(self.data.sequence_length)

    @property
    def passes_each(self) -> int:
        """Passes of a step on each device, if the batch is given per device; otherwise all passes of a step."""
        return self.batch.accumulation // (self.train.batch_devices or 1)

    def on_devices(self, devices: int) -> RunConfig:
        """Return the config with ``devices`` as `train.batch_devices` if the batch is given per device and not yet
        set."""
        train = self.train
        if train.batch_size_per_device is None or train.batch_devices is not None:
            return self
        return self.model_copy(update={"train": train.model_copy(update={"batch_devices": devices})})


def _completed(values: Any) -> Any:
    """Return ``values`` of a run file with those that follow from others: the tokenizer of a model of the transformers
    library, and what a ds_config gives."""
    model = values.get("model") if is_mapping(values) else None
    if is_mapping(model) and model.get("kind") == "huggingface" and "tokenizer" not in values:
        own = {"kind": "huggingface", "path": model.get("name_or_path"), "revision": model.get("revision")}
        values = {**values, "tokenizer": own}
    return given_by_deepspeed(values)
