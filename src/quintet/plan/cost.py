"""Parameters, FLOPs, memory and disk of a run."""

from __future__ import annotations

from dataclasses import dataclass

from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig
from quintet.config.tokenizer import BPETokenizerConfig
from quintet.config.train import total_steps
from quintet.data.mixture import stage_lines
from quintet.data.prepare import build_tokenizer_of, find_prepared, prepare
from quintet.model.count import ParameterCount
from quintet.train.check import check_training
from quintet.train.intervals import intervals_of
from quintet.train.model import model_vocabulary, parameter_count, training_flops
from quintet.train.optimizer import state_bytes

FP32_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that last for the whole run; activations, which depend on the micro-batch, are not in it."""

    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class Plan:
    """The cost of a run. ``flops_per_token`` counts forward and backward, ``checkpoint_bytes`` one checkpoint.

    ``left_out_documents`` are not trained on because they are equal to one that is validated on, and ``stages`` are
    those of the data in words; None where the data is not prepared yet. ``flops_note`` says what the FLOPs do not
    count, None where that is nothing.
    """

    name: str
    parameters: ParameterCount
    vocab_size: int
    flops_per_token: int
    steps: int
    tokens_per_step: int
    micro_batch_size: int
    accumulation: int
    tokens_total: int
    flops_total: int
    memory: Memory
    checkpoint_bytes: int
    checkpoints_kept: int
    left_out_documents: int | None = None
    stages: list[str] | None = None
    flops_note: str | None = None

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        p, m = self.parameters, self.memory
        return [
            f"{self.name}",
            f"parameters   {p.total:,} ({p.trainable:,} trainable, {p.embedding:,} of them embedding), "
            f"vocabulary {self.vocab_size:,}",
            f"steps        {self.steps:,} of {self.tokens_per_step:,} tokens "
            f"({self.accumulation} × {self.micro_batch_size} samples)",
            f"tokens       {self.tokens_total:,} in all, {self.tokens_total / p.total:.1f} a parameter",
            f"FLOPs        {self.flops_per_token:,} a token, {self.flops_total:.3g} in all",
            *([f"             {self.flops_note}"] if self.flops_note else []),
            f"memory       {size(m.weights)} weights + {size(m.gradients)} gradients + {size(m.optimizer)} optimizer"
            ", and the activations of a micro-batch",
            f"disk         {size(self.checkpoint_bytes)} a checkpoint, {self.checkpoints_kept} kept at most",
            *(f"stage        {line}" for line in self.stages or []),
            f"left out     {self._left_out}",
        ]

    @property
    def _left_out(self) -> str:
        if self.left_out_documents is None:
            return "not known before `quintet prepare`: documents that are also validated on"
        return f"{self.left_out_documents:,} documents that are also validated on"


def make_plan(config: RunConfig) -> Plan:
    """Compute the plan of ``config``.

    The vocabulary of a BPE that is not trained yet is taken from the run file; characters have to be counted, and
    ``train.epochs`` needs the number of samples, so these two read the sources.
    """
    check_training(config)
    keep = config.checkpoint.keep
    vocab_size = _vocabulary(config)
    counted = config.train.epochs is not None or (keep is None and config.checkpoint.every_epochs is not None)
    prepared = prepare(config) if counted else find_prepared(config)
    samples = prepared.train.epoch_samples if prepared is not None else 0
    batch = config.batch
    steps = total_steps(config.train, batch.samples, batch.sequence_length, samples)
    parameters = parameter_count(config, vocab_size)
    flops = training_flops(config, vocab_size)
    tokens = steps * batch.tokens
    memory = Memory(
        weights=FP32_BYTES * parameters.total,
        gradients=FP32_BYTES * parameters.trainable,
        optimizer=round(state_bytes(config.optimizer) * parameters.trainable),
    )
    due = intervals_of(config, steps, samples).saved()
    return Plan(
        name=config.name,
        parameters=parameters,
        vocab_size=vocab_size,
        flops_per_token=flops.total,
        steps=steps,
        tokens_per_step=batch.tokens,
        micro_batch_size=batch.micro_batch_size,
        accumulation=batch.accumulation,
        tokens_total=tokens,
        flops_total=tokens * flops.total,
        memory=memory,
        checkpoint_bytes=FP32_BYTES * parameters.trainable + memory.optimizer,
        checkpoints_kept=due if keep is None else keep + config.checkpoint.keep_best,
        left_out_documents=None if prepared is None else prepared.left_out,
        stages=None if prepared is None else stage_lines(config, prepared.train.order),
        flops_note=flops.note,
    )


def _vocabulary(config: RunConfig) -> int:
    if isinstance(config.model, TransformerConfig) and config.model.vocab_size is not None:
        return config.model.vocab_size
    if isinstance(config.tokenizer, BPETokenizerConfig):
        return config.tokenizer.vocab_size
    return model_vocabulary(config, build_tokenizer_of(config))


def size(count: float) -> str:
    """``count`` bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        shown = float(f"{count:.3g}")
        if shown < 1000:
            return f"{shown:g} {unit}"
        count /= 1000
    return f"{count:,.0f} PB"
