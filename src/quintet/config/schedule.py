"""How the learning rate and the rate of dropout change over the steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, key
from quintet.config.train import fraction_errors

_WARMUP_UNIT = "steps or fraction"


class _Warmup(ConfigSection):
    warmup_steps: int | float = key(
        0,
        "steps in which the rate rises linearly to `lr`: a whole number, or with a point a fraction of the run's steps",
        unit=_WARMUP_UNIT,
        ge=0,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a warm-up of more than the whole run."""
        return fraction_errors(self, "warmup_steps")


class _Counted(_Warmup):
    first: Literal[0, 1] = key(
        1, "what the first step counts as; with 0 its rate is 0 where there is a warm-up, as in nanoGPT"
    )


class _Decay(_Counted):
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


class ConstantConfig(_Counted):
    """Always `lr` after the warm-up."""

    kind: Literal["constant"] = key(..., "constant after the warm-up")


class WSDConfig(_Decay):
    """Warm-up, stable, decay (Hu et al. 2024): `lr` until the last part of the run, then a line to `min_lr`."""

    kind: Literal["wsd"] = key(..., "warm-up, stable, decay")
    decay_fraction: float = key(0.2, "part of all steps that decays, at the end", unit="fraction", gt=0, le=1)


class PlateauConfig(_Warmup):
    """`lr` after the warm-up, lowered when the validation loss has stopped to fall, as PyTorch's ReduceLROnPlateau."""

    kind: Literal["plateau"] = key(..., "lowered when the validation loss stops to fall")
    factor: float = key(0.1, "what the rate is multiplied by", unit="factor", gt=0, lt=1)
    patience: int = key(10, "validations without a better loss that are borne", unit="validations", ge=0)
    threshold: float = key(
        1e-4, "part of the best loss by which another must be below it to be better", unit="fraction", ge=0, lt=1
    )
    cooldown: int = key(0, "validations after a change that are not counted as worse", unit="validations", ge=0)
    min_lr: float = key(0.0, "lowest rate", unit="per step", ge=0)


class TransformersScheduleConfig(_Warmup):
    """A schedule of the transformers library, by its name there."""

    kind: Literal["transformers"] = key(..., "a schedule of transformers (needs `pip install 'quintet[hf]'`)")
    name: str = key(..., "name of transformers.SchedulerType, such as cosine_with_restarts", min_length=1)
    arguments: dict[str, Any] = key({}, "what else the schedule takes, by the names that the library gives them")


class DeepSpeedScheduleConfig(ConfigSection):
    """A schedule of DeepSpeed, by its name there, with DeepSpeed's formulas and defaults; it sets the highest rate
    itself, except for WarmupCosineLR, and for WarmupLR without `warmup_max_lr`."""

    kind: Literal["deepspeed"] = key(..., "a schedule of DeepSpeed")
    name: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest", "WarmupDecayCooldownLR"] = (
        key(..., "its name in DeepSpeed's configuration; WarmupDecayCooldownLR is PhyAGI's")
    )
    arguments: dict[str, Any] = key({}, "its parameters; `total_num_steps` is the run's steps when not given")


class TorchScheduleConfig(_Warmup):
    """A schedule of torch.optim.lr_scheduler, by the name of its class, stepped once a step; the warm-up is a line from
    0.01 `lr` before it."""

    kind: Literal["torch"] = key(..., "a schedule of torch.optim.lr_scheduler")
    name: str = key(..., "class of torch.optim.lr_scheduler, such as StepLR or CosineAnnealingLR", min_length=1)
    arguments: dict[str, Any] = key({}, "what the class takes, by the names that it gives them")


ScheduleConfig = Annotated[
    CosineConfig
    | LinearConfig
    | ConstantConfig
    | WSDConfig
    | PlateauConfig
    | TransformersScheduleConfig
    | DeepSpeedScheduleConfig
    | TorchScheduleConfig,
    Field(discriminator="kind"),
]


class NoDropoutScheduleConfig(ConfigSection):
    """Every dropout keeps the rate that the model gives it."""

    kind: Literal["none"] = key("none", "the rates that the model says")


class ConstantDropoutConfig(ConfigSection):
    """One rate for every dropout of the model, whatever the model says."""

    kind: Literal["constant"] = key(..., "one rate everywhere")
    rate: float = key(..., "rate of every dropout", unit="probability", ge=0, le=1)


class _CountedDropout(ConfigSection):
    first: Literal[0, 1] = key(1, "what the first step counts as")


class LinearDropoutConfig(_CountedDropout):
    """A straight line from one rate to another, flat before and after; it holds for every dropout of the model."""

    kind: Literal["linear"] = key(..., "a straight line from one rate to another")
    start: float = key(..., "rate up to `first_step`", unit="probability", ge=0, le=1)
    end: float = key(..., "rate from `last_step` on", unit="probability", ge=0, le=1)
    first_step: int = key(0, "step at which the line begins", unit="steps", ge=0)
    last_step: int | None = key(None, "step at which the line ends; the run's last when not given", unit="steps", ge=1)


class TriangleDropoutConfig(_CountedDropout):
    """Up and down again between two rates, in equal cycles; it holds for every dropout of the model."""

    kind: Literal["triangle"] = key(..., "up and down in equal cycles")
    low: float = key(0.0, "rate at the ends of a cycle", unit="probability", ge=0, le=1)
    high: float = key(..., "rate in the middle of a cycle", unit="probability", ge=0, le=1)
    cycles: int = key(1, "cycles in `steps`", unit="cycles", ge=1)
    steps: int | None = key(
        None, "steps of all cycles, after which the rate stays low; the run's when not given", unit="steps", ge=1
    )


DropoutScheduleConfig = Annotated[
    NoDropoutScheduleConfig | ConstantDropoutConfig | LinearDropoutConfig | TriangleDropoutConfig,
    Field(discriminator="kind"),
]


def dropout_changes(config: DropoutScheduleConfig) -> bool:
    """True if the rate is not the same at each step."""
    return isinstance(config, _CountedDropout)
