"""How long a run is, what one of its steps sees, and which checkpoints it keeps.

A period of a run is a whole number of steps, or a number with a point: a fraction of the run's steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

_BATCH_SIZE = 32  # samples a step when no key says how many


def fraction_errors(part: ConfigSection, *names: str) -> ConfigErrors:
    """Yield an error for each of the keys ``names`` of ``part`` whose fraction is more than the whole run."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, float) and value > 1:
            yield config_error(name, f"{value:g} is not a fraction of the run; write a number of steps without a point")


def steps_of(duration: int | float, steps: int) -> int:
    """Steps that ``duration`` stands for in a run of ``steps``; a fraction is rounded up.

    The only place where a fraction of steps becomes steps.
    """
    return duration if isinstance(duration, int) else rounded_up(duration, steps)


def rounded_up(factor: float, count: int, divisor: int = 1) -> int:
    """``factor · count / divisor`` rounded up, with ``factor`` as it is written: 0.07 of 100 is 7, though 0.07 · 100 is
    above 7 in floating point."""
    return math.ceil(Fraction(str(factor)) * count / divisor)


def fraction_of(part: float, whole: float) -> float:
    """``part / whole`` as a fraction of a run, at most 1. Never above the quotient, so that `steps_of` rounds it up to
    what the quotient itself is rounded up to: 5 / 7 of 700 steps are 500."""
    quotient, found = Fraction(str(part)) / Fraction(str(whole)), part / whole
    while Fraction(str(found)) > quotient:
        found = math.nextafter(found, 0.0)
    return min(1.0, found)


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


ActivationCheckpointing = Literal["none", "selective"] | Annotated[int, Field(ge=1)]


class SpikeConfig(ConfigSection):
    """Loss spikes: a step whose loss lies far above those before it. The run goes back to its last checkpoint and goes
    on from there without the batch of that step.

    A step is judged once `window` losses are known and the first checkpoint that `checkpoint` asks for by its step is
    there. The losses are looked at where metrics are logged, and before each validation and checkpoint.
    """

    window: int = key(
        100, "losses before a step, of which the median and the median deviation from it are taken", unit="steps", ge=5
    )
    threshold: float = key(
        8.0,
        "a spike is a loss so many deviations above the median; a deviation is 1.4826 times the median one, which is "
        "the standard deviation of normal noise, and at least 1 % of the median",
        unit="deviations",
        gt=0,
    )
    max_rollbacks: int = key(10, "so many times the run goes back; the next spike ends it", unit="times", ge=1)


class TrainConfig(ConfigSection):
    """How long, in which batches, and on what hardware a run trains."""

    steps: int | None = key(
        None,
        "optimizer steps; this, `tokens` or `epochs` says how long to train, of several the one that ends first",
        unit="steps",
        ge=1,
    )
    tokens: int | None = key(None, "tokens to train on, rounded up to whole steps", unit="tokens", ge=1)
    epochs: float | None = key(None, "passes over the training samples, rounded up to whole steps", unit="epochs", gt=0)
    batch_size: int | None = key(
        None, "samples a step; 32 when neither this, `batch_tokens` nor `accumulation` is given", unit="samples", ge=1
    )
    batch_tokens: int | None = key(None, "tokens a step, instead of `batch_size`", unit="tokens", ge=1)
    batch_size_per_device: int | None = key(
        None,
        "samples a step on each device, instead of `batch_size`: the batch is so many times the devices on which the "
        "run starts",
        unit="samples",
        ge=1,
    )
    batch_devices: int | None = key(
        None,
        "devices that `batch_size_per_device` counts; those on which the run starts when not given, after which its "
        "run.yaml has them: continued on others, it keeps its batch",
        unit="devices",
        ge=1,
    )
    micro_batch_size: int | None = key(
        None, "samples in one forward and backward pass; the whole batch when not given", unit="samples", ge=1
    )
    accumulation: int | None = key(None, "passes whose gradients make one step", unit="passes", ge=1)
    clip_norm: float | None = key(1.0, "largest norm of the gradient; null does not clip", unit="norm", gt=0)
    max_skipped: int = key(
        10,
        "so many steps one after the other without a finite gradient, none of which is taken, end the run",
        unit="steps",
        ge=1,
    )
    on_spike: SpikeConfig | None = key(
        None, "what to do when the loss leaps: go back to the last checkpoint and leave the batch out; null: nothing"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = key(
        "auto",
        "numbers of the matrix products; weights and optimizer stay in fp32. auto takes bf16 where it is fast; tf32 "
        "are fp32 numbers of which an NVIDIA GPU from Ampere on multiplies 11 bits",
    )
    deterministic: Literal["auto"] | bool = key(
        "auto",
        "true: the same run gives the same bits on the same hardware, and so does one that was stopped and continued; "
        "what has no such kernel is refused. false: the fastest kernels, whose sums may differ in the last bits. auto: "
        "true on a CPU as far as there are such kernels, false on a GPU",
    )
    compile: Literal["auto"] | bool = key(
        "auto",
        "torch.compile each block; auto compiles on a GPU, and not on a CPU, where it gains little and starts late",
    )
    activation_checkpointing: ActivationCheckpointing = key(
        "none",
        "compute a block's activations again in the backward pass instead of keeping them, which saves memory: with a "
        "number n in each n-th block, selective in all of them but for matrix products and attention",
        unit="blocks",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "where to train; auto takes cuda, mps, cpu in this order"
    )
    log_every: int | float = key(
        10,
        "steps from one progress line to the next, and between the training metrics that `track` gets (metrics.jsonl "
        "has those of every step); a number with a point is a fraction of the run's steps",
        unit="steps or fraction",
        gt=0,
    )

    def batch(self, sequence_length: int) -> BatchShape:
        """The batch that these keys ask for, whichever of them say so. Raises config_error when they do not add up."""
        samples, devices = self.batch_size or self.batch_size_per_device, self.batch_devices or 1
        if self.batch_tokens is not None:
            samples, rest = divmod(self.batch_tokens, sequence_length)
            if rest or not samples:
                raise config_error(
                    "train.batch_tokens",
                    f"must be a multiple of data.sequence_length = {sequence_length}: "
                    f"{max(samples, 1) * sequence_length} or {(max(samples, 1) + 1) * sequence_length}",
                )
        if samples is None and self.accumulation is not None and self.micro_batch_size is not None:
            samples = self.accumulation * self.micro_batch_size
        samples = samples or _BATCH_SIZE
        micro = self.micro_batch_size or max(1, samples // (self.accumulation or 1))
        accumulation = self.accumulation or samples // micro
        if micro * accumulation != samples:
            raise config_error(
                "train.accumulation" if self.accumulation else "train.micro_batch_size",
                f"micro-batches of {micro} × {accumulation} passes do not make a batch of {samples} samples",
            )
        return BatchShape(samples * devices, micro, accumulation * devices, sequence_length)

    def errors(self) -> ConfigErrors:
        """Yield errors for a run without an end, and for batches that are said twice or by halves."""
        yield from fraction_errors(self, "log_every")
        if self.steps is None and self.tokens is None and self.epochs is None:
            yield config_error("steps", "steps, tokens or epochs must say how long to train; none is given")
        given = [name for name in ("batch_size", "batch_tokens", "batch_size_per_device") if getattr(self, name)]
        if len(given) > 1:
            yield config_error(given[1], f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
        if self.batch_devices is not None and self.batch_size_per_device is None:
            yield config_error("batch_devices", "counts the devices of batch_size_per_device, which is not given")


def total_steps(train: TrainConfig, batch_samples: int, sequence_length: int, epoch_samples: int) -> int:
    """Optimizer steps of a run: the fewest of what steps, tokens and epochs say."""
    ends = [] if train.steps is None else [train.steps]
    if train.tokens is not None:
        ends.append(-(-train.tokens // (batch_samples * sequence_length)))
    if train.epochs is not None:
        ends.append(rounded_up(train.epochs, epoch_samples, batch_samples))
    return min(ends)


class CheckpointConfig(ConfigSection):
    """Checkpoints: what a run keeps so that it can be continued and used."""

    every: int | float | None = key(
        500,
        "steps from one checkpoint to the next, or with a point a fraction of the run's steps; null: none on the way",
        unit="steps or fraction",
        gt=0,
    )
    every_epochs: float | None = key(
        None,
        "also a checkpoint each time that this part of the training samples has been seen, rounded down to whole steps",
        unit="epochs",
        gt=0,
    )
    every_seconds: float | None = key(
        None, "also a checkpoint when the last one is so long ago, at the next step", unit="seconds", gt=0
    )
    at_end: bool = key(True, "also a checkpoint after the last step; a run that is stopped before always writes one")
    keep: int | None = key(2, "checkpoints to keep, the newest; null keeps all", unit="checkpoints", ge=1)
    keep_best: bool = key(True, "also keep the checkpoint with the lowest validation loss")
    dir: str | None = key(
        None,
        "folder in which a folder of the run's name holds its checkpoints, to which `checkpoints` in the run's folder "
        "is then a link; they are in the run's folder when not given",
        min_length=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for more than the whole run."""
        return fraction_errors(self, "every")
