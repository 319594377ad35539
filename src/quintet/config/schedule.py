"""The kinds of `schedule` and of `dropout_schedule`: learning rate and dropout as functions of the step."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, key
from quintet.config.train import fraction_errors

_WARMUP_UNIT = "steps or fraction"


class _Warmup(ConfigSection):
    warmup_steps: int | float = key(
        0,
        "steps in which the rate rises linearly to `lr`: a whole number, or, with a point, a fraction of the run's "
        "steps",
        unit=_WARMUP_UNIT,
        ge=0,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a fraction above 1."""
        return fraction_errors(self, "warmup_steps")


class _Counted(_Warmup):
    first: Literal[0, 1] = key(1, "number of the first step; with 0 its rate in a warm-up is 0, as in nanoGPT")


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
    """Warm-up, stable, decay (Hu et al. 2024): `lr`, then a straight line to `min_lr` at the end of the run."""

    kind: Literal["wsd"] = key(..., "warm-up, stable, decay")
    decay_fraction: float = key(
        0.2, "part of all steps, at the end, in which the rate decays", unit="fraction", gt=0, le=1
    )


class PlateauConfig(_Warmup):
    """`lr` after the warm-up, lowered when the validation loss stops falling, as PyTorch's ReduceLROnPlateau."""

    kind: Literal["plateau"] = key(..., "lowered when the validation loss stops falling")
    factor: float = key(0.1, "factor on the rate", unit="factor", gt=0, lt=1)
    patience: int = key(10, "validations without a better loss before the rate is lowered", unit="validations", ge=0)
    threshold: float = key(
        1e-4,
        "a loss is better if it is lower than the best one by more than this fraction of the best one",
        unit="fraction",
        ge=0,
        lt=1,
    )
    cooldown: int = key(0, "validations after a change that do not count as worse", unit="validations", ge=0)
    min_lr: float = key(0.0, "lowest rate", unit="per step", ge=0)


class TransformersScheduleConfig(_Warmup):
    """A schedule of the transformers library, by its name there."""

    kind: Literal["transformers"] = key(..., "a schedule of transformers (needs `pip install 'quintet[hf]'`)")
    name: str = key(..., "name of transformers.SchedulerType, such as cosine_with_restarts", min_length=1)
    arguments: dict[str, Any] = key({}, "further arguments of the schedule, by name")


class DeepSpeedScheduleConfig(ConfigSection):
    """A schedule of DeepSpeed, by its name there, with DeepSpeed's formulas and defaults. The schedule sets the highest
    rate, except for WarmupCosineLR and for WarmupLR without `warmup_max_lr`."""

    kind: Literal["deepspeed"] = key(..., "a schedule of DeepSpeed")
    name: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest", "WarmupDecayCooldownLR"] = (
        key(..., "its name in DeepSpeed's configuration; WarmupDecayCooldownLR is PhyAGI's")
    )
    arguments: dict[str, Any] = key({}, "its parameters, by name; `total_num_steps` is the run's steps when not given")


class TorchScheduleConfig(_Warmup):
    """A schedule of torch.optim.lr_scheduler, by the name of its class, advanced once per step. The warm-up before it
    is a straight line from 0.01 `lr`."""

    kind: Literal["torch"] = key(..., "a schedule of torch.optim.lr_scheduler")
    name: str = key(..., "class of torch.optim.lr_scheduler, such as StepLR or CosineAnnealingLR", min_length=1)
    arguments: dict[str, Any] = key({}, "arguments of the class, by name")


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
    """All dropouts keep the rates of the model."""

    kind: Literal["none"] = key("none", "the rates of the model")


class ConstantDropoutConfig(ConfigSection):
    """One rate for all dropouts of the model, in place of the model's rates."""

    kind: Literal["constant"] = key(..., "one rate for all dropouts")
    rate: float = key(..., "rate of all dropouts", unit="probability", ge=0, le=1)


class _CountedDropout(ConfigSection):
    first: Literal[0, 1] = key(1, "number of the first step")


class LinearDropoutConfig(_CountedDropout):
    """A straight line from one rate to another, constant before and after, for all dropouts of the model."""

    kind: Literal["linear"] = key(..., "a straight line from one rate to another")
    start: float = key(..., "rate up to `first_step`", unit="probability", ge=0, le=1)
    end: float = key(..., "rate from `last_step` on", unit="probability", ge=0, le=1)
    first_step: int = key(0, "step at which the line starts", unit="steps", ge=0)
    last_step: int | None = key(None, "step at which the line ends; the run's last when not given", unit="steps", ge=1)


class TriangleDropoutConfig(_CountedDropout):
    """Linearly up and down between two rates, in equal cycles, for all dropouts of the model."""

    kind: Literal["triangle"] = key(..., "up and down in equal cycles")
    low: float = key(0.0, "rate at the ends of a cycle", unit="probability", ge=0, le=1)
    high: float = key(..., "rate in the middle of a cycle", unit="probability", ge=0, le=1)
    cycles: int = key(1, "cycles in `steps`", unit="cycles", ge=1)
    steps: int | None = key(
        None,
        "steps of all cycles together, after which the rate stays low; the run's steps when not given",
        unit="steps",
        ge=1,
    )


DropoutScheduleConfig = Annotated[
    NoDropoutScheduleConfig | ConstantDropoutConfig | LinearDropoutConfig | TriangleDropoutConfig,
    Field(discriminator="kind"),
]


def dropout_changes(config: DropoutScheduleConfig) -> bool:
    """True if the rate changes between steps."""
    return isinstance(config, _CountedDropout)
