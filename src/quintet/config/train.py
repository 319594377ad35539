"""The sections `train` and `checkpoint`: the length of a run, its batches and hardware, and the checkpoints it keeps.

A duration is a whole number of steps, or, with a point, a fraction of the run's steps.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

_BATCH_SIZE = 32  # samples per step by default


def fraction_errors(part: ConfigSection, *names: str) -> ConfigErrors:
    """Yield an error for each key of ``part`` in ``names`` that is a fraction above 1."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, float) and value > 1:
            yield config_error(name, f"{value:g} is not a fraction of the run; write a number of steps without a point")


def steps_of(duration: int | float, steps: int) -> int:
    """Return ``duration`` in steps, for a run of ``steps``; a fraction is rounded up."""
    return duration if isinstance(duration, int) else rounded_up(duration, steps)


def rounded_up(factor: float, count: int, divisor: int = 1) -> int:
    """Return ``factor · count / divisor``, rounded up, for the decimal number ``factor``: 0.07 · 100 is 7, although it
    is above 7 in floating point."""
    return math.ceil(Fraction(str(factor)) * count / divisor)


def fraction_of(part: float, whole: float) -> float:
    """Return ``part / whole``, at most 1, never above the exact quotient, so that `steps_of` rounds both up to the same
    number: 5 / 7 of 700 steps are 500."""
    quotient, fraction = Fraction(str(part)) / Fraction(str(whole)), part / whole
    while Fraction(str(fraction)) > quotient:
        fraction = math.nextafter(fraction, 0.0)
    return min(1.0, fraction)


@dataclass(frozen=True)
class BatchShape:
    """The batch of one step: ``samples`` = ``micro_batch_size`` × ``accumulation``, each of ``sequence_length``
    tokens."""

    samples: int
    micro_batch_size: int
    accumulation: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.samples * self.sequence_length


ActivationCheckpointing = Literal["none", "selective"] | Annotated[int, Field(ge=1)]


class SpikeConfig(ConfigSection):
    """The response to a loss spike, a step whose loss is far above those before it: the run goes back to its last
    checkpoint and continues without the batch of that step.

    Spikes are looked for once there are `window` losses and the first checkpoint that `checkpoint` asks for by its
    step, each time that metrics are logged and before each validation and checkpoint.
    """

    window: int = key(
        100,
        "losses before a step from which the median and the median absolute deviation are computed",
        unit="steps",
        ge=5,
    )
    threshold: float = key(
        8.0,
        "a spike is a loss this many deviations above the median. A deviation is 1.4826 times the median absolute one, "
        "which is the standard deviation of normal noise, and at least 1 % of the median",
        unit="deviations",
        gt=0,
    )
    max_rollbacks: int = key(10, "number of times that the run goes back; the next spike ends it", unit="times", ge=1)


class TrainConfig(ConfigSection):
    """The length of a run, its batches, and its hardware."""

    steps: int | None = key(
        None,
        "optimizer steps; give steps, `tokens` or `epochs`, and if several, the run ends with the first that is "
        "reached",
        unit="steps",
        ge=1,
    )
    tokens: int | None = key(None, "tokens to train on, rounded up to whole steps", unit="tokens", ge=1)
    epochs: float | None = key(None, "passes over the training samples, rounded up to whole steps", unit="epochs", gt=0)
    batch_size: int | None = key(
        None, "samples per step; 32 when neither this, `batch_tokens` nor `accumulation` is given", unit="samples", ge=1
    )
    batch_tokens: int | None = key(None, "tokens per step, instead of `batch_size`", unit="tokens", ge=1)
    batch_size_per_device: int | None = key(
        None,
        "samples per step and device, instead of `batch_size`; the batch is this times the number of devices on which "
        "the run starts",
        unit="samples",
        ge=1,
    )
    batch_devices: int | None = key(
        None,
        "number of devices for `batch_size_per_device`; when not given, those on which the run starts, which its "
        "run.yaml then records, so that it keeps its batch when it continues on another number of devices",
        unit="devices",
        ge=1,
    )
    micro_batch_size: int | None = key(
        None, "samples in one forward and backward pass; the whole batch when not given", unit="samples", ge=1
    )
    accumulation: int | None = key(None, "passes whose gradients are summed for one step", unit="passes", ge=1)
    clip_norm: float | None = key(1.0, "largest norm of the gradient; null does not clip", unit="norm", gt=0)
    max_skipped: int = key(
        10,
        "number of consecutive steps skipped for a gradient that is not finite after which the run ends",
        unit="steps",
        ge=1,
    )
    on_spike: SpikeConfig | None = key(
        None, "at a loss spike, go back to the last checkpoint and skip the batch; null: do nothing"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = key(
        "auto",
        "dtype of the matrix products; weights and optimizer state stay in fp32. auto takes bf16 if the device "
        "computes it fast; with tf32 an NVIDIA GPU from Ampere on multiplies fp32 numbers with 11 bits",
    )
    deterministic: Literal["auto"] | bool = key(
        "auto",
        "true: a run gives the same bits each time on the same hardware, also when it is stopped and continued; an "
        "operation without a deterministic kernel is an error. false: the fastest kernels, whose sums may differ in "
        "the last bits. auto: true on a CPU, except for operations without such a kernel, and false on a GPU",
    )
    compile: Literal["auto"] | bool = key(
        "auto",
        "compile each block with torch.compile; auto compiles on a GPU, but not on a CPU, where it gains little and "
        "the start takes long",
    )
    activation_checkpointing: ActivationCheckpointing = key(
        "none",
        "recompute activations in the backward pass instead of keeping them, to save memory: a number n does so in "
        "each n-th block, selective in all blocks, except for matrix products and attention",
        unit="blocks",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "device to train on; auto takes the first of cuda, mps and cpu that exists"
    )
    log_every: int | float = key(
        10,
        "steps between progress lines and between the training metrics that trackers get (metrics.jsonl has those of "
        "each step); a number with a point is a fraction of the run's steps",
        unit="steps or fraction",
        gt=0,
    )

    def batch(self, sequence_length: int) -> BatchShape:
        """Return the batch that these keys define. Raises config_error when they contradict each other."""
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
        """Yield errors for a run without a length, and for batch keys that exclude or require one another."""
        yield from fraction_errors(self, "log_every")
        if self.steps is None and self.tokens is None and self.epochs is None:
            yield config_error("steps", "none of steps, tokens and epochs is given; set one of them")
        given = [name for name in ("batch_size", "batch_tokens", "batch_size_per_device") if getattr(self, name)]
        if len(given) > 1:
            yield config_error(given[1], f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
        if self.batch_devices is not None and self.batch_size_per_device is None:
            yield config_error(
                "batch_devices", "needs batch_size_per_device, which is not given; set it, or remove batch_devices"
            )


def total_steps(train: TrainConfig, batch_samples: int, sequence_length: int, epoch_samples: int) -> int:
    """Return the optimizer steps of a run, the fewest of those by steps, tokens and epochs."""
    ends = [] if train.steps is None else [train.steps]
    if train.tokens is not None:
        ends.append(-(-train.tokens // (batch_samples * sequence_length)))
    if train.epochs is not None:
        ends.append(rounded_up(train.epochs, epoch_samples, batch_samples))
    return min(ends)


class CheckpointConfig(ConfigSection):
    """The checkpoints of a run, from which it is continued and used."""

    every: int | float | None = key(
        500,
        "steps between checkpoints, or, with a point, a fraction of the run's steps; null: none during the run",
        unit="steps or fraction",
        gt=0,
    )
    every_epochs: float | None = key(
        None,
        "also a checkpoint after each such part of an epoch, rounded down to whole steps",
        unit="epochs",
        gt=0,
    )
    every_seconds: float | None = key(
        None, "also a checkpoint when this time has passed since the last one, at the next step", unit="seconds", gt=0
    )
    at_end: bool = key(True, "also a checkpoint after the last step; a run that is stopped earlier always writes one")
    keep: int | None = key(2, "newest checkpoints to keep; null keeps all", unit="checkpoints", ge=1)
    keep_best: bool = key(True, "also keep the checkpoint with the lowest validation loss")
    dir: str | None = key(
        None,
        "folder for the checkpoints, in a folder of the run's name to which `checkpoints` in the run folder then "
        "links; in the run folder when not given",
        min_length=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a fraction above 1."""
        return fraction_errors(self, "every")
