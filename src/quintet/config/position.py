"""The kinds of `model.position`: rotary, learned, sinusoidal, or none."""

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class NoScalingConfig(ConfigSection):
    """Wavelengths are not scaled."""

    kind: Literal["none"] = key("none", "no scaling")


class _Scaling(ConfigSection):
    factor: float = key(..., "factor by which the context becomes longer", unit="factor", ge=1)


class LinearScalingConfig(_Scaling):
    """Position interpolation (Chen et al. 2023): each wavelength is multiplied by the factor."""

    kind: Literal["linear"] = key(..., "position interpolation")


class NTKScalingConfig(_Scaling):
    """NTK-aware scaling (Peng et al. 2023, section 3.1): theta becomes theta · factor^(d / (d − 2)) for d rotated
    features, so that the longest wavelength is multiplied by the factor and the shortest stays."""

    kind: Literal["ntk"] = key(..., "a larger theta")


class _ScalingFromContext(_Scaling):
    original_context: int = key(..., "context length that the weights were trained with first", unit="tokens", ge=1)


class YarnScalingConfig(_ScalingFromContext):
    """YaRN (Peng et al. 2023): long wavelengths are multiplied by the factor, short ones stay, with a ramp between
    them, and cosines and sines are multiplied by 0.1 ln(factor) + 1."""

    kind: Literal["yarn"] = key(..., "YaRN")
    beta_fast: float = key(
        32.0, "wavelengths with at least this many turns in the original context stay", unit="turns", gt=0
    )
    beta_slow: float = key(1.0, "wavelengths with at most this many turns get the whole factor", unit="turns", gt=0)
    attention_factor: float | None = key(
        None, "factor on cosines and sines; 0.1 ln(factor) + 1 when not given", unit="factor", gt=0
    )


class Llama3ScalingConfig(_ScalingFromContext):
    """The scaling of Llama 3.1 (Grattafiori et al. 2024): wavelengths above original_context / low_freq_factor are
    multiplied by the factor, those below original_context / high_freq_factor stay, with a ramp between them."""

    kind: Literal["llama3"] = key(..., "the scaling of Llama 3.1")
    low_freq_factor: float = key(
        1.0, "original context over the shortest wavelength with the whole factor", unit="factor", gt=0
    )
    high_freq_factor: float = key(4.0, "original context over the longest wavelength that stays", unit="factor", gt=0)


RopeScalingConfig = Annotated[
    NoScalingConfig | LinearScalingConfig | NTKScalingConfig | YarnScalingConfig | Llama3ScalingConfig,
    Field(discriminator="kind"),
]


class RopeConfig(ConfigSection):
    """Rotary positions (Su et al. 2021): queries and keys are rotated by angles that grow with the position."""

    kind: Literal["rope"] = key("rope", "rotary positions, in the attention")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)
    fraction: float = key(
        1.0,
        "part of each head's features that is rotated: the first ones, rounded down to pairs",
        unit="fraction",
        gt=0,
        le=1,
    )
    pairs: Literal["halves", "interleaved"] = key(
        "halves",
        "features that are rotated together. halves: i and i + half, as in GPT-NeoX and Llama; interleaved: 2i and 2i "
        "+ 1, as in the paper",
    )
    scaling: RopeScalingConfig = key(NoScalingConfig(), "scaling of the wavelengths for a longer context")
    learned: bool = key(False, "also add a learned vector per position to the embedding")


class LearnedPositionConfig(ConfigSection):
    """A learned vector per position, added to the embedding, as in GPT-2."""

    kind: Literal["learned"] = key(..., "learned vectors, added to the embedding")


class SinusoidalPositionConfig(ConfigSection):
    """Fixed sines and cosines, added to the embedding (Vaswani et al. 2017)."""

    kind: Literal["sinusoidal"] = key(..., "fixed sines and cosines, added to the embedding")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)


class NoPositionConfig(ConfigSection):
    """No positions: a causal model learns the order from its mask (Haviv et al. 2022)."""

    kind: Literal["none"] = key(..., "no positions")


PositionConfig = Annotated[
    RopeConfig | LearnedPositionConfig | SinusoidalPositionConfig | NoPositionConfig, Field(discriminator="kind")
]
