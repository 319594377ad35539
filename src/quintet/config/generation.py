"""The settings of text generation, and the sections of a run file that generate texts."""

from __future__ import annotations

from copy import copy
from typing import Annotated, Any, TypedDict

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, key
from quintet.config.train import fraction_errors


class SamplingConfig(ConfigSection):
    """How many tokens are written after a prompt, and how each is drawn from the model's probabilities."""

    max_tokens: int = key(256, "tokens to write after a prompt", unit="tokens", ge=0)
    temperature: float = key(1.0, "divides the logits; 0 takes the likeliest token", unit="logits", ge=0)
    top_k: int | None = key(None, "draw from this many likeliest tokens; null: from all", unit="tokens", ge=1)
    top_p: float | None = key(
        None,
        "draw from the fewest likeliest tokens with this total (Holtzman et al. 2020); null: from all",
        unit="probability",
        gt=0,
        le=1,
    )
    min_p: float | None = key(
        None,
        "draw from the tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024); null: "
        "from all",
        unit="share",
        ge=0,
        le=1,
    )
    repetition_penalty: float = key(
        1.0,
        "above 1 makes tokens of the prompt and of the text less likely (Keskar et al. 2019)",
        unit="factor",
        gt=0,
    )


class GenerationSettings(SamplingConfig):
    """Settings of one generation: those of a run file, and the seed."""

    seed: int = key(0, "the same seed gives the same texts")

    @classmethod
    def from_section(cls, section: SamplingConfig, seed: int) -> GenerationSettings:
        """Return the settings of a ``section`` of a run file, with ``seed``."""
        return cls(**{name: getattr(section, name) for name in SamplingConfig.model_fields}, seed=seed)


class GenerationOptions(TypedDict, total=False):
    """The fields of `GenerationSettings` as keyword arguments; None stands for the default."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int


def _with_default(name: str, default: Any) -> Any:
    """The key ``name`` of `SamplingConfig` with another default."""
    field = copy(SamplingConfig.model_fields[name])
    field.default = default
    return field


class TextGenerationConfig(SamplingConfig):
    """Figures of texts that the model writes after prompts: variety, repetition and readability; see
    docs/guide/generation.md."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = key(
        (
            "Once upon a time there was a",
            "The weather today is",
            "My favourite food is",
            "In the morning the children",
            "A dog is an animal that",
            "The capital of France is",
            "Water boils when",
            "The most important invention of the last century was",
            "Scientists have found that",
            "The difference between a river and a lake is",
            "To bake bread one needs",
            "The government decided to",
        ),
        "two or more prompts, each continued once; the figures are those of the continuations",
        min_length=2,
    )
    max_tokens: int = key(250, "tokens to write after a prompt", unit="tokens", ge=1)
    temperature: float = _with_default("temperature", 0.7)
    top_k: int | None = _with_default("top_k", 200)


class SampleConfig(SamplingConfig):
    """Texts that the model writes during training."""

    every: int | float | None = key(
        None,
        "steps between samples, or, with a point, a fraction of the run's steps, and once more at the end; at each "
        "validation when not given",
        unit="steps or fraction",
        gt=0,
    )
    prompts: tuple[str, ...] = key(
        ("",),
        "prompts, each continued once; an empty prompt starts a new document, an empty list writes nothing. With "
        "music a held-out piece is continued instead, as a MIDI file and a picture",
    )
    max_tokens: int = key(128, "tokens to write after a prompt", unit="tokens", ge=1)
    temperature: float = _with_default("temperature", 0.8)
    top_k: int | None = _with_default("top_k", 50)

    def errors(self) -> ConfigErrors:
        """Yield an error for a fraction above 1."""
        return fraction_errors(self, "every")
