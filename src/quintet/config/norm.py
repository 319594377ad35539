"""The norms of a model: one for all places, or another at some of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class RMSNormConfig(ConfigSection):
    """Root-mean-square norm (Zhang and Sennrich 2019)."""

    kind: Literal["rms"] = key("rms", "root-mean-square norm")
    eps: float = key(1e-5, "added to the mean square", unit="squared feature", gt=0)
    gain: bool = key(True, "a trained factor for each feature")


class PlaceRMSNormConfig(RMSNormConfig):
    """Root-mean-square norm (Zhang and Sennrich 2019), at one place."""

    kind: Literal["rms"] = key(..., "root-mean-square norm")


class LayerNormConfig(ConfigSection):
    """Layer norm (Ba et al. 2016)."""

    kind: Literal["layer"] = key(..., "layer norm")
    eps: float = key(1e-5, "added to the variance", unit="squared feature", gt=0)
    gain: bool = key(True, "a trained factor for each feature")
    bias: bool = key(True, "a trained shift for each feature")


class NoNormConfig(ConfigSection):
    """No norm at all."""

    kind: Literal["none"] = key(..., "no norm")


class ModelNormConfig(ConfigSection):
    """The norm that `model.norm` says."""

    kind: Literal["model"] = key("model", "as model.norm")


NormConfig = Annotated[RMSNormConfig | LayerNormConfig | NoNormConfig, Field(discriminator="kind")]
"""A norm, said in full."""

PlaceNormConfig = Annotated[
    ModelNormConfig | PlaceRMSNormConfig | LayerNormConfig | NoNormConfig, Field(discriminator="kind")
]
"""The norm of one place, which is the model's unless it is said."""
