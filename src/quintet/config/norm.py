"""The kinds of `model.norm`, and of the norms that parts of the model may have instead."""

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class RMSNormConfig(ConfigSection):
    """Root-mean-square norm (Zhang and Sennrich 2019)."""

    kind: Literal["rms"] = key("rms", "root-mean-square norm")
    eps: float = key(1e-5, "added to the mean square", unit="squared feature", gt=0)
    gain: bool = key(True, "a trained factor per feature")


class PartRMSNormConfig(RMSNormConfig):
    """Root-mean-square norm (Zhang and Sennrich 2019), in a part whose default is the norm in `model.norm`."""

    kind: Literal["rms"] = key(..., "root-mean-square norm")


class LayerNormConfig(ConfigSection):
    """Layer norm (Ba et al. 2016)."""

    kind: Literal["layer"] = key(..., "layer norm")
    eps: float = key(1e-5, "added to the variance", unit="squared feature", gt=0)
    gain: bool = key(True, "a trained factor per feature")
    bias: bool = key(True, "a trained shift per feature")


class NoNormConfig(ConfigSection):
    """No norm."""

    kind: Literal["none"] = key(..., "no norm")


class ModelNormConfig(ConfigSection):
    """The norm in `model.norm`."""

    kind: Literal["model"] = key("model", "the norm in model.norm")


NormConfig = Annotated[RMSNormConfig | LayerNormConfig | NoNormConfig, Field(discriminator="kind")]
"""The norm of the model."""

PartNormConfig = Annotated[
    ModelNormConfig | PartRMSNormConfig | LayerNormConfig | NoNormConfig, Field(discriminator="kind")
]
"""The norm of one part of the model; `model`, the default, is the norm in `model.norm`."""
