"""How weights start."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class NormalInitConfig(ConfigSection):
    """Normal weights and zero biases, as GPT-2."""

    kind: Literal["normal"] = key("normal", "normally distributed weights")
    std: float = key(0.02, "standard deviation", unit="weight", gt=0)
    scale_residual: bool = key(
        True, "divide by sqrt(2 · layers) where a projection writes into the residual stream (Radford et al. 2019)"
    )


class XavierInitConfig(ConfigSection):
    """Uniform weights by Glorot and Bengio (2010); biases are zero, embeddings normal with 0.02."""

    kind: Literal["xavier"] = key(..., "Xavier uniform")
    gain: float = key(1.0, "factor on the bound", unit="factor", gt=0)


class KaimingInitConfig(ConfigSection):
    """Normal weights by He et al. (2015); biases are zero, embeddings normal with 0.02."""

    kind: Literal["kaiming"] = key(..., "Kaiming normal")
    mode: Literal["fan_in", "fan_out"] = key("fan_in", "keep the variance of the forward or of the backward pass")
    nonlinearity: Literal["gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear"] = key(
        "gelu", "function whose gain is used; gelu and silu have relu's"
    )


class NoInitConfig(ConfigSection):
    """What PyTorch's modules do by themselves."""

    kind: Literal["none"] = key(..., "PyTorch's own")


class PretrainedInitConfig(ConfigSection):
    """The weights of a trained model: a run of Quintet's, or a checkpoint of Hugging Face's of a family that the
    transformer can express (`quintet import` writes the run file's part for one)."""

    kind: Literal["pretrained"] = key(..., "the weights of a trained model")
    path: str = key(..., "run folder, folder of a Hugging Face checkpoint, or its name on the hub", min_length=1)
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")


InitConfig = Annotated[
    NormalInitConfig | XavierInitConfig | KaimingInitConfig | NoInitConfig | PretrainedInitConfig,
    Field(discriminator="kind"),
]
