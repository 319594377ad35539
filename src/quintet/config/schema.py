"""The run file: one frozen, typed description of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from quintet.config.data import DataConfig
from quintet.config.deepspeed import given_by_deepspeed, refuse_deepspeed_contradictions
from quintet.config.evaluate import EvaluateConfig
from quintet.config.model import ModelConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig, OptimizerConfig
from quintet.config.packing import MusicPackingConfig
from quintet.config.parallel import AutoParallelConfig, ParallelConfig
from quintet.config.schedule import (
    CosineConfig,
    DropoutScheduleConfig,
    NoDropoutScheduleConfig,
    ScheduleConfig,
)
from quintet.config.section import ConfigSection, config_error, key
from quintet.config.sources import holds_ids
from quintet.config.tokenizer import BPETokenizerConfig, IdTokenizerConfig, TokenizerConfig
from quintet.config.track import TrackConfig
from quintet.config.trainer import QuintetTrainerConfig, TrainerConfig, refuse_contradictions
from quintet.config.training import (
    CheckpointConfig,
    LossConfig,
    MaskedLossConfig,
    NextTokenLossConfig,
    SampleConfig,
    TrainConfig,
)

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class BatchShape:
    """How one step is made: ``samples`` = ``micro_batch_size`` × ``accumulation``, each of ``sequence_length``."""

    samples: int
    micro_batch_size: int
    accumulation: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.samples * self.sequence_length


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

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_the_model(cls, values: Any) -> Any:
        """A model of the transformers library has a tokenizer, so that need not be named."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict) or model.get("kind") != "huggingface" or "tokenizer" in values:
            return values
        own = {"kind": "huggingface", "path": model.get("name_or_path"), "revision": model.get("revision")}
        return {**values, "tokenizer": own}

    @model_validator(mode="before")
    @classmethod
    def _settings_of_deepspeed(cls, values: Any) -> Any:
        """What a ds_config says need not be said again."""
        return given_by_deepspeed(values)

    @model_validator(mode="after")
    def _parts_agree(self) -> RunConfig:
        model, length = self.model, self.data.sequence_length
        if model.context_length is not None and length > model.context_length:
            raise config_error(
                "data.sequence_length", f"{length} tokens are more than model.context_length = {model.context_length}"
            )
        if (
            isinstance(self.tokenizer, BPETokenizerConfig)
            and isinstance(model, TransformerConfig)
            and model.vocab_size
            and (model.vocab_size < self.tokenizer.vocab_size)
        ):
            raise config_error(
                "model.vocab_size",
                f"{model.vocab_size} rows are fewer than the tokenizer's {self.tokenizer.vocab_size} ids; "
                "raise it, or leave it out to take the tokenizer's",
            )
        if getattr(self.schedule, "min_lr", 0.0) > self.optimizer.lr:
            raise config_error("schedule.min_lr", f"is above optimizer.lr = {self.optimizer.lr}")
        warmup = getattr(self.schedule, "warmup_steps", 0)
        if self.train.steps is not None and isinstance(warmup, int) and warmup > self.train.steps:
            raise config_error("schedule.warmup_steps", f"is more than the {self.train.steps} steps of the run")
        if self.schedule.kind == "plateau":
            if self.evaluate.every is None:
                raise config_error(
                    "evaluate.every", "must be given: schedule.kind: plateau follows the validation loss"
                )
            if not self.data.validation and not self.data.validation_sources:
                raise config_error("data.validation", "holds nothing out, and schedule.kind: plateau follows its loss")
        if isinstance(self.loss, MaskedLossConfig) and self.loss.mask_id is None and model.kind == "huggingface":
            raise config_error(
                "loss.mask_id", "must be given: a model of the transformers library gets no row for the mask"
            )
        bidirectional = isinstance(model, TransformerConfig) and model.attention.kind == "bidirectional"
        if bidirectional and not model.tells_documents and self.data.packing.kind != "stream":
            raise config_error(
                "model.attention.mask",
                f"full sees the padding behind short samples, which data.packing.kind: {self.data.packing.kind} makes; "
                "set it to document",
            )
        if self.evaluate.only and not self.data.validation and not self.data.validation_sources:
            raise config_error(
                "evaluate.only", "needs held-out data, and data.validation is 0; give it or validation_sources"
            )
        held_out = self.data.validation_sources or (self.data.sources if self.data.validation else ())
        known = list(dict.fromkeys(source.label for source in held_out if source.label))
        if self.evaluate.best_by is not None and self.evaluate.best_by not in known:
            there = ", ".join(known) or "none"
            raise config_error("evaluate.best_by", f"nothing held out has this label; there are {there}")
        if self.train.compile is True and self.dropout_schedule.kind in ("linear", "triangle"):
            raise config_error(
                "train.compile", "a dropout rate that changes would compile the model at every step; set compile: false"
            )
        _ = self.batch
        refuse_contradictions(self)
        refuse_deepspeed_contradictions(self)
        return self

    @model_validator(mode="after")
    def _ids_are_enough(self) -> RunConfig:
        """Where the tokenizer has no text, no source has any, and an end id is there for what needs it."""
        if not isinstance(self.tokenizer, IdTokenizerConfig):
            return self
        data = self.data
        for name, sources in (("sources", data.sources), ("validation_sources", data.validation_sources)):
            for index, source in enumerate(sources):
                if not holds_ids(source):
                    raise config_error(
                        f"data.{name}[{index}]",
                        "holds text, and tokenizer.kind: ids knows none; name another tokenizer, or ids: npy, bin, "
                        "tatm, megatron, store, or rows with document.kind: tokens",
                    )
                if self.tokenizer.end_id is None and getattr(source, "document", None) == "end_id":
                    raise config_error("tokenizer.end_id", f"must be given: data.{name}[{index}].document is end_id")
        if self.tokenizer.end_id is None and getattr(data.packing, "add_bos_eos", False):
            raise config_error("tokenizer.end_id", "must be given: data.packing.add_bos_eos puts it around samples")
        return self

    @model_validator(mode="after")
    def _text_to_model(self) -> RunConfig:
        """What `evaluate.text_modeling` measures, the model and its data have."""
        asked, model = self.evaluate.text_modeling, self.model
        if asked is None:
            return self
        reasons = {
            "learns to fill in hidden tokens, with loss.kind: masked": self.loss.kind == "masked",
            "sees what it is to predict, with model.attention.kind: bidirectional": isinstance(model, TransformerConfig)
            and model.attention.kind == "bidirectional",
            "learns from ids that stand for no text": isinstance(self.tokenizer, IdTokenizerConfig),
            "learns from music": isinstance(self.data.packing, MusicPackingConfig),
        }
        for reason, holds in reasons.items():
            if holds:
                raise config_error("evaluate.text_modeling", f"must be null: the model {reason}")
        if asked.path is None and not self.data.validation and not self.data.validation_sources:
            raise config_error("evaluate.text_modeling", "needs held-out text: give its path, or data.validation")
        return self

    @property
    def validation_batch_size(self) -> int:
        """Samples in one forward pass of a validation."""
        return self.evaluate.batch_size or self.batch.micro_batch_size

    @property
    def batch(self) -> BatchShape:
        """The batch that ``train`` asks for, whichever of its keys say so."""
        train, length = self.train, self.data.sequence_length
        samples, devices = train.batch_size or train.batch_size_per_device, train.batch_devices or 1
        if train.batch_tokens is not None:
            samples, rest = divmod(train.batch_tokens, length)
            if rest or not samples:
                raise config_error(
                    "train.batch_tokens",
                    f"must be a multiple of data.sequence_length = {length}: {max(samples, 1) * length} or "
                    f"{(max(samples, 1) + 1) * length}",
                )
        if samples is None and train.accumulation is not None and train.micro_batch_size is not None:
            samples = train.accumulation * train.micro_batch_size
        samples = samples or DEFAULT_BATCH_SIZE
        micro = train.micro_batch_size or max(1, samples // (train.accumulation or 1))
        accumulation = train.accumulation or samples // micro
        if micro * accumulation != samples:
            raise config_error(
                "train.accumulation" if train.accumulation else "train.micro_batch_size",
                f"micro-batches of {micro} × {accumulation} passes do not make a batch of {samples} samples",
            )
        return BatchShape(samples * devices, micro, accumulation * devices, length)

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
