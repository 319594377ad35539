"""How a model is trained: loss, steps and batches, samples, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from quintet.config.duration import fraction_errors
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

_BATCH_SIZE = 32  # samples a step when no key says how many


class _Loss(ConfigSection):
    label_smoothing: float = key(
        0.0, "part of the target that is spread evenly over all ids (Szegedy et al. 2016)", unit="fraction", ge=0, lt=1
    )
    z_loss: float = key(
        0.0, "weight of the squared log of the softmax's denominator (Chowdhery et al. 2022)", unit="factor", ge=0
    )
    ignore_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "ids that are never predicted: no loss on them", unit="ids"
    )
    ignore_token_range: tuple[int, int] | None = key(
        None, "ids from the first to the last, both counted, that are never predicted", unit="ids"
    )
    chunk: int | None = key(
        None,
        "tokens whose logits are in memory at once; when not given, as many as fit 256 MB (32 MB on a CPU)",
        unit="tokens",
        ge=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a range without ids."""
        if self.ignore_token_range is not None and not 0 <= self.ignore_token_range[0] <= self.ignore_token_range[1]:
            first, last = self.ignore_token_range
            yield config_error(
                "ignore_token_range", f"{first} to {last} holds no id; give the lowest and the highest one"
            )


class NextTokenLossConfig(_Loss):
    """Cross-entropy of each token given those that its position may see."""

    kind: Literal["next_token"] = key("next_token", "predict each next token")


class MaskedLossConfig(_Loss):
    """Masked next-token prediction (BehnamGhader et al. 2024): some tokens of the input are hidden, as in BERT, and
    predicted at the position before them; the others have no loss."""

    kind: Literal["masked"] = key(..., "predict hidden tokens, each at the position before it")
    fraction: float = key(0.15, "part of the tokens that is to be predicted", unit="fraction", gt=0, le=1)
    masked: float = key(0.8, "part of these that the mask stands for", unit="fraction", ge=0, le=1)
    random: float = key(
        0.1, "part of these that a random token stands for; the rest stays as it is", unit="fraction", ge=0, le=1
    )
    mask_id: int | None = key(
        None, "id of the mask; one more row of the embedding, never predicted, when not given", unit="id", ge=0
    )

    def errors(self) -> ConfigErrors:
        """Yield those of any loss, and one for shares that are more than the whole."""
        yield from super().errors()
        if self.masked + self.random > 1 + 1e-9:
            yield config_error(
                "random", f"masked and random are {self.masked + self.random:g} together; at most 1 fits"
            )


LossConfig = Annotated[NextTokenLossConfig | MaskedLossConfig, Field(discriminator="kind")]


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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto", "numbers of the matrix products; weights and optimizer stay in fp32. auto takes bf16 where it is fast"
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


class SampleConfig(ConfigSection):
    """Texts that the model writes during training, to read along."""

    every: int | float | None = key(
        None,
        "steps from one sample to the next, or with a point a fraction of the run's steps, and one at the end; with "
        "each validation when not given",
        unit="steps or fraction",
        gt=0,
    )
    prompts: tuple[str, ...] = key(
        ("",),
        "beginnings to continue, each once; an empty one starts a new document, an empty list samples nothing. With "
        "music a held-out piece is continued instead, into a MIDI file and a picture",
    )
    max_tokens: int = key(128, "tokens to write after a prompt", unit="tokens", ge=1)
    temperature: float = key(0.8, "divides the logits; 0 takes the likeliest token", unit="logits", ge=0)
    top_k: int | None = key(50, "choose among so many likeliest tokens", unit="tokens", ge=1)
    top_p: float | None = key(None, "choose among the likeliest tokens with this total", unit="probability", gt=0, le=1)

    def errors(self) -> ConfigErrors:
        """Yield an error for more than the whole run."""
        return fraction_errors(self, "every")


class CheckpointConfig(ConfigSection):
    """What a run keeps so that it can be continued and used."""

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
