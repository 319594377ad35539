"""How a model is trained: optimizer, schedule, steps and batches, devices, checkpoints, evaluation, trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.config.part import Part, key, problem


class AdamWConfig(Part):
    """AdamW (Loshchilov and Hutter 2019). Matrices and embeddings decay; norms and biases do not."""

    kind: Literal["adamw"] = key("adamw", "AdamW, fused where PyTorch has it")
    lr: float = key(1e-3, "highest learning rate; the schedule scales it", unit="per step", gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = key(
        (0.9, 0.95), "decay of the averages of the gradient and of its square", unit="per step"
    )
    eps: float = key(1e-8, "added to the root of the second average", unit="gradient", gt=0)
    weight_decay: float = key(0.1, "decay of the weights, times the learning rate", unit="per step", ge=0)


OptimizerConfig = AdamWConfig


class _Warmup(Part):
    warmup_steps: int = key(0, "steps in which the rate rises linearly to `lr`", unit="steps", ge=0)


class _Decay(_Warmup):
    min_lr: float = key(0.0, "rate at the end of the decay", unit="per step", ge=0)


class CosineConfig(_Decay):
    """Half a cosine from `lr` to `min_lr` (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = key("cosine", "half a cosine down to min_lr")
    decay_steps: int | None = key(
        None, "step at which min_lr is reached; the last one when not given", unit="steps", ge=1
    )


class LinearConfig(_Decay):
    """A straight line from `lr` to `min_lr`."""

    kind: Literal["linear"] = key(..., "a straight line down to min_lr")
    decay_steps: int | None = key(
        None, "step at which min_lr is reached; the last one when not given", unit="steps", ge=1
    )


class ConstantConfig(_Warmup):
    """Always `lr` after the warm-up."""

    kind: Literal["constant"] = key(..., "constant after the warm-up")


class WSDConfig(_Decay):
    """Warm-up, stable, decay (Hu et al. 2024): `lr` until the last part of the run, then a line to `min_lr`."""

    kind: Literal["wsd"] = key(..., "warm-up, stable, decay")
    decay_fraction: float = key(0.2, "part of all steps that decays, at the end", unit="fraction", gt=0, le=1)


ScheduleConfig = Annotated[CosineConfig | LinearConfig | ConstantConfig | WSDConfig, Field(discriminator="kind")]


class NoDropoutScheduleConfig(Part):
    """Every dropout keeps the rate that the model gives it."""

    kind: Literal["none"] = key("none", "the rates that the model says")


class ConstantDropoutConfig(Part):
    """One rate for every dropout of the model, whatever the model says."""

    kind: Literal["constant"] = key(..., "one rate everywhere")
    rate: float = key(..., "rate of every dropout", unit="probability", ge=0, lt=1)


class LinearDropoutConfig(Part):
    """A straight line from one rate to another, flat before and after; it holds for every dropout of the model."""

    kind: Literal["linear"] = key(..., "a straight line from one rate to another")
    start: float = key(..., "rate up to `first_step`", unit="probability", ge=0, lt=1)
    end: float = key(..., "rate from `last_step` on", unit="probability", ge=0, lt=1)
    first_step: int = key(0, "step at which the line begins", unit="steps", ge=0)
    last_step: int | None = key(None, "step at which the line ends; the run's last when not given", unit="steps", ge=1)


class TriangleDropoutConfig(Part):
    """Up and down again between two rates, in equal cycles; it holds for every dropout of the model."""

    kind: Literal["triangle"] = key(..., "up and down in equal cycles")
    low: float = key(0.0, "rate at the ends of a cycle", unit="probability", ge=0, lt=1)
    high: float = key(..., "rate in the middle of a cycle", unit="probability", ge=0, lt=1)
    cycles: int = key(1, "cycles in `steps`", unit="cycles", ge=1)
    steps: int | None = key(
        None, "steps of all cycles, after which the rate stays low; the run's when not given", unit="steps", ge=1
    )


DropoutScheduleConfig = Annotated[
    NoDropoutScheduleConfig | ConstantDropoutConfig | LinearDropoutConfig | TriangleDropoutConfig,
    Field(discriminator="kind"),
]


class _Loss(Part):
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

    @model_validator(mode="after")
    def _range_in_order(self) -> _Loss:
        if self.ignore_token_range is not None and not 0 <= self.ignore_token_range[0] <= self.ignore_token_range[1]:
            first, last = self.ignore_token_range
            raise problem("ignore_token_range", f"{first} to {last} holds no id; give the lowest and the highest one")
        return self


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

    @model_validator(mode="after")
    def _shares_fit(self) -> MaskedLossConfig:
        if self.masked + self.random > 1 + 1e-9:
            raise problem("random", f"masked and random are {self.masked + self.random:g} together; at most 1 fits")
        return self


LossConfig = Annotated[NextTokenLossConfig | MaskedLossConfig, Field(discriminator="kind")]


class TrainConfig(Part):
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
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "where to train; auto takes cuda, mps, cpu in this order"
    )
    log_every: int = key(10, "steps from one progress line to the next", unit="steps", ge=1)

    @model_validator(mode="after")
    def _some_length(self) -> TrainConfig:
        if self.steps is None and self.tokens is None and self.epochs is None:
            raise problem("steps", "steps, tokens or epochs must say how long to train; none is given")
        if self.batch_size is not None and self.batch_tokens is not None:
            raise problem("batch_tokens", "give batch_size or batch_tokens, not both")
        return self


class AutoParallelConfig(Part):
    """Let Quintet choose; with one device there is nothing to distribute."""

    kind: Literal["auto"] = key("auto", "chosen from the devices at hand, and said")


class NoParallelConfig(Part):
    """One process on one device."""

    kind: Literal["none"] = key(..., "one process, one device")


ParallelConfig = Annotated[AutoParallelConfig | NoParallelConfig, Field(discriminator="kind")]


class EvaluateConfig(Part):
    """Validation during training: always the same samples, in evaluation mode, in the precision of the training."""

    every: int | None = key(
        250,
        "steps from one validation to the next; there is always one at the end; null: only that",
        unit="steps",
        ge=1,
    )
    samples: int | None = key(
        256, "held-out samples to use, spread evenly; null takes all of them", unit="samples", ge=1
    )
    batch_size: int | None = key(
        None, "samples in one forward pass; the micro-batch's when not given", unit="samples", ge=1
    )


class SampleConfig(Part):
    """Texts that the model writes during training, to read along."""

    every: int | None = key(
        None, "steps from one sample to the next; with each validation when not given", unit="steps", ge=1
    )
    prompts: tuple[str, ...] = key(
        ("",), "beginnings to continue, each once; an empty one starts a new document, an empty list samples nothing"
    )
    max_tokens: int = key(128, "tokens to write after a prompt", unit="tokens", ge=1)
    temperature: float = key(0.8, "divides the logits; 0 takes the likeliest token", unit="logits", ge=0)
    top_k: int | None = key(50, "choose among so many likeliest tokens", unit="tokens", ge=1)
    top_p: float | None = key(None, "choose among the likeliest tokens with this total", unit="probability", gt=0, le=1)


class CheckpointConfig(Part):
    """What a run keeps so that it can be continued and used."""

    every: int | None = key(
        500,
        "steps from one checkpoint to the next; there is always one at the end; null: only that",
        unit="steps",
        ge=1,
    )
    every_seconds: float | None = key(
        None, "also a checkpoint when the last one is so long ago, at the next step", unit="seconds", gt=0
    )
    keep: int = key(2, "checkpoints to keep, the newest", unit="checkpoints", ge=1)
    keep_best: bool = key(True, "also keep the checkpoint with the lowest validation loss")


class TensorBoardConfig(Part):
    """TensorBoard event files in the run folder."""

    kind: Literal["tensorboard"] = key(..., "TensorBoard (needs `pip install 'quintet[tensorboard]'`)")


TrackConfig = TensorBoardConfig
