"""What each position computes by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.config.model.norm import ModelNormConfig, PlaceNormConfig
from quintet.config.section import ConfigSection, config_error, key

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "leaky_relu", "silu", "tanh", "sigmoid", "none"]


class _FeedForward(ConfigSection):
    """What both kinds have besides their activation: width, biases, dropout, norm."""

    width: int | None = key(None, "hidden size; from `factor` when not given", unit="features", ge=1)
    factor: float | None = key(
        None,
        "hidden size over the model's width; when neither is given 4 for plain, and for gated 8/3 up to a multiple of "
        "64",
        unit="factor",
        gt=0,
    )
    bias: bool = key(False, "biases in the projections")
    norm: PlaceNormConfig = key(ModelNormConfig(), "norm around the network")
    dropout: float = key(0.0, "dropout on the hidden features", unit="probability", ge=0, lt=1)
    input_dropout: float = key(0.0, "dropout on what enters the network", unit="probability", ge=0, lt=1)

    @model_validator(mode="after")
    def _one_width(self) -> _FeedForward:
        if self.width is not None and self.factor is not None:
            raise config_error("factor", "give width or factor, not both")
        return self


class GatedFeedForwardConfig(_FeedForward):
    """A gated feed-forward network (Shazeer 2020): down(activation(gate(x)) * up(x)); with silu it is SwiGLU."""

    kind: Literal["gated"] = key("gated", "gated: down(activation(gate(x)) * up(x))")
    activation: Activation = key("silu", "function of the gate")


class PlainFeedForwardConfig(_FeedForward):
    """The feed-forward network of the first transformers: down(activation(up(x)))."""

    kind: Literal["plain"] = key(..., "plain: down(activation(up(x)))")
    activation: Activation = key("gelu", "function between the two projections")


FeedForwardConfig = Annotated[GatedFeedForwardConfig | PlainFeedForwardConfig, Field(discriminator="kind")]
