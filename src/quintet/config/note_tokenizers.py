"""Piano: tokenizers of notes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

OUTSIDE = "what to do with notes that no piano has, of pitches below 21 or above 108: stop with an error, or leave out"


class NoteTokenizerConfig(ConfigSection):
    """Settings that tokenizers of notes have in common."""

    special_tokens: int = key(
        1024, "ids that are kept free for names, such as those of tasks and composers", unit="ids", ge=0
    )
    names: tuple[str, ...] = key((), "names of the first free ids, in this order; those of the data come after them")
    outside: Literal["refuse", "drop"] = key("refuse", OUTSIDE)

    @field_validator("names")
    @classmethod
    def _names_are_words(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name or name.split() != [name]:
                raise ValueError(f"{name!r} must be one word without spaces")
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        return names

    def errors(self) -> ConfigErrors:
        """Yield an error for more names than there are free ids."""
        if len(self.names) > self.special_tokens:
            yield config_error("names", f"{len(self.names)} names are more than special_tokens = {self.special_tokens}")


class ExponentialTimeTokenizerConfig(NoteTokenizerConfig):
    """Keys that go down and up, velocities, and steps of time that double: piano-gpt's ExponentialTimeTokenizer."""

    kind: Literal["exponential_time"] = key(..., "notes as key events, velocities and doubling steps of time")
    time_unit: float = key(0.01, "the smallest step of time", unit="seconds", gt=0)
    max_time_step: float = key(1.0, "steps of time are shorter than this", unit="seconds", gt=0)
    velocity_bins: int = key(32, "velocities 0 to 127 in so many bins of one width", unit="bins", ge=1, le=128)

    def errors(self) -> ConfigErrors:
        """Yield those of any tokenizer of notes, and one where no time passes."""
        yield from super().errors()
        if self.max_time_step <= self.time_unit:
            yield config_error(
                "max_time_step", f"must be above time_unit = {self.time_unit}, for a step must be below it"
            )


class MidiTokTokenizerConfig(NoteTokenizerConfig):
    """A tokenizer of the MidiTok library (Fradet et al. 2021) with one stream of ids."""

    kind: Literal["miditok"] = key(..., "a tokenizer of the MidiTok library")
    family: Literal["REMI", "TSD", "MIDILike", "Structured", "PerTok"] = key("REMI", "which of the library's")
    arguments: dict[str, Any] = key(
        {},
        'what its TokenizerConfig is given; ranges of beats are written as in its files, `beat_res: {"0_4": 24}`. '
        "A beat is half a second",
    )


class MergedTokenizerConfig(ExponentialTimeTokenizerConfig):
    """Keys that go down and up, velocities, and steps of time that double: piano-gpt's ExponentialTimeTokenizer."""

    # Where its ids are merged it is the default, so that its kind need not be given, as it must elsewhere.
    kind: Literal["exponential_time"] = key("exponential_time", "notes as key events, velocities and steps of time")


class NoteBPETokenizerConfig(ConfigSection):
    """Byte-pair encoding (Sennrich et al. 2016) of another tokenizer's ids: piano-gpt's AwesomeMidiTokenizer."""

    kind: Literal["note_bpe"] = key(..., "pairs of another tokenizer's ids, trained on the sources")
    base: MergedTokenizerConfig | MidiTokTokenizerConfig = key(
        MergedTokenizerConfig(), "whose ids are merged", discriminator="kind"
    )
    vocab_size: int = key(10_000, "ids, the base's included", unit="ids", ge=1)
    max_token_length: int = key(128, "the most ids of the base in one of these", unit="ids", ge=2)
    train_tokens: int = key(20_000_000, "ids of the base to train on, taken evenly from the sources", unit="ids", ge=1)
