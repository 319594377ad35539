"""Positions of tokens: rotary, learned, sinusoidal, or none."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class NoScalingConfig(ConfigSection):
    """Wavelengths as they are."""

    kind: Literal["none"] = key("none", "wavelengths as they are")


class _Scaling(ConfigSection):
    factor: float = key(..., "how many times longer the context becomes", unit="factor", ge=1)


class LinearScalingConfig(_Scaling):
    """Position interpolation (Chen et al. 2023): every wavelength is stretched by the factor."""

    kind: Literal["linear"] = key(..., "position interpolation")


class NTKScalingConfig(_Scaling):
    """NTK-aware scaling: theta becomes theta · factor^(d / (d − 2)) for d turned features, so that the longest
    wavelength is stretched by the factor and the shortest stays (Peng et al. 2023, section 3.1)."""

    kind: Literal["ntk"] = key(..., "a larger theta")


class _ScalingFromContext(_Scaling):
    original_context: int = key(..., "context that the weights were first trained with", unit="tokens", ge=1)


class YarnScalingConfig(_ScalingFromContext):
    """YaRN (Peng et al. 2023): long wavelengths are stretched, short ones stay, with a ramp between them, and cosines
    and sines are multiplied by 0.1 ln(factor) + 1."""

    kind: Literal["yarn"] = key(..., "YaRN")
    beta_fast: float = key(32.0, "turns within the original context from which nothing changes", unit="turns", gt=0)
    beta_slow: float = key(1.0, "turns below which a wavelength is stretched whole", unit="turns", gt=0)
    attention_factor: float | None = key(
        None, "factor on cosines and sines; 0.1 ln(factor) + 1 when not given", unit="factor", gt=0
    )


class Llama3ScalingConfig(_ScalingFromContext):
    """The scaling of Llama 3.1 (Grattafiori et al. 2024): wavelengths above original_context / low_freq_factor are
    stretched, those below original_context / high_freq_factor stay, with a ramp between them."""

    kind: Literal["llama3"] = key(..., "as Llama 3.1")
    low_freq_factor: float = key(1.0, "context over the wavelength that is stretched whole", unit="factor", gt=0)
    high_freq_factor: float = key(4.0, "context over the wavelength that stays", unit="factor", gt=0)


RopeScalingConfig = Annotated[
    NoScalingConfig | LinearScalingConfig | NTKScalingConfig | YarnScalingConfig | Llama3ScalingConfig,
    Field(discriminator="kind"),
]


class RopeConfig(ConfigSection):
    """Rotary positions (Su et al. 2021): queries and keys are turned by an angle that grows with the position; with
    `learned` a learned vector a position is added to the embedding as well."""

    kind: Literal["rope"] = key("rope", "rotary, in the attention")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)
    fraction: float = key(
        1.0,
        "part of each head's features that is turned, the first ones, rounded down to pairs",
        unit="fraction",
        gt=0,
        le=1,
    )
    pairs: Literal["halves", "interleaved"] = key(
        "halves",
        "which features are turned together: i and i + half, as GPT-NeoX and Llama, or 2i and 2i + 1, as the paper",
    )
    scaling: RopeScalingConfig = key(NoScalingConfig(), "how wavelengths are stretched for a longer context")
    learned: bool = key(False, "also add one learned vector a position to the embedding")


class LearnedPositionConfig(ConfigSection):
    """One learned vector a position, added to the token's embedding (as GPT-2)."""

    kind: Literal["learned"] = key(..., "learned vectors, added to the embedding")


class SinusoidalPositionConfig(ConfigSection):
    """Fixed sines and cosines, added to the token's embedding (Vaswani et al. 2017)."""

    kind: Literal["sinusoidal"] = key(..., "fixed sines and cosines, added to the embedding")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)


class NoPositionConfig(ConfigSection):
    """No positions: the causal mask alone tells order (Haviv et al. 2022)."""

    kind: Literal["none"] = key(..., "none")


PositionConfig = Annotated[
    RopeConfig | LearnedPositionConfig | SinusoidalPositionConfig | NoPositionConfig, Field(discriminator="kind")
]
