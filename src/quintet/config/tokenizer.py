"""The kinds of `tokenizer`, of text and of notes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.sources import SourceConfig

OUTSIDE = "what to do with notes outside a piano's range, of pitches below 21 or above 108: stop with an error, or drop"
_BEGIN = (
    "start each document, prompt and measured text with the tokenizer's begin token (`bos_token`): true, false, or "
    "auto, as the tokenizer itself does"
)


class ByteTokenizerConfig(ConfigSection):
    """UTF-8 bytes: 256 ids, and one for the end of a document."""

    kind: Literal["byte"] = key(..., "UTF-8 bytes")


class CharTokenizerConfig(ConfigSection):
    """One id per character that occurs in the sources, as in char-rnn and nanoGPT's Shakespeare example."""

    kind: Literal["char"] = key(..., "characters of the sources")


class BPETokenizerConfig(ConfigSection):
    """A byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) trained on the sources."""

    kind: Literal["bpe"] = key("bpe", "byte-level byte-pair encoding, trained on the sources")
    vocab_size: int = key(4096, "ids, including the 256 bytes and the end of a document", unit="ids", ge=257)
    simplify: bool = key(
        False,
        "drop accents and all characters but printable ASCII, tab and newline, and make each digit a token; not "
        "lossless, but leaves a small vocabulary more room",
    )
    train_bytes: int = key(
        100_000_000, "text to train on, taken evenly from the sources; more changes little", unit="bytes", ge=1
    )
    sources: tuple[SourceConfig, ...] = key((), "sources to train it on; data.sources when not given")


class TiktokenTokenizerConfig(ConfigSection):
    """OpenAI's encodings. Their files are downloaded once; TIKTOKEN_CACHE_DIR names a folder that has them already."""

    kind: Literal["tiktoken"] = key(..., "an encoding of OpenAI's tiktoken")
    name: Literal["gpt2", "p50k_base", "cl100k_base", "o200k_base"] = key("gpt2", "name of the encoding")


class HuggingFaceTokenizerConfig(ConfigSection):
    """Any fast tokenizer of Hugging Face's libraries."""

    kind: Literal["huggingface"] = key(..., "a Hugging Face tokenizer")
    path: str = key(
        ...,
        "a folder with tokenizer.json, that file itself, a pickled tokenizer (.pkl), or a name on the hub",
        min_length=1,
    )
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")
    begin: bool | Literal["auto"] = key("auto", _BEGIN)


class IdTokenizerConfig(ConfigSection):
    """No tokenizer, for data that is token ids already (npy, bin, tatm, megatron, rows of ids). Prompts and generated
    texts are written as numbers, and there are no bits per byte."""

    kind: Literal["ids"] = key(..., "token ids without text")
    vocab_size: int = key(..., "ids are 0 … vocab_size - 1", unit="ids", ge=1)
    end_id: int | None = key(None, "the id that ends a document; none when not given", unit="id", ge=0)

    def errors(self) -> ConfigErrors:
        """Yield an error for an end id outside the vocabulary."""
        if self.end_id is not None and self.end_id >= self.vocab_size:
            yield config_error("end_id", f"{self.end_id} is not one of the {self.vocab_size} ids; they start at 0")


class SavedTokenizerConfig(ConfigSection):
    """The tokenizer of another run, for fine-tuning its model with the ids that it was trained on."""

    kind: Literal["saved"] = key(..., "the tokenizer of another run")
    path: str = key(
        ...,
        "a run folder, the name of a run under runs/, or a folder with a tokenizer that Quintet wrote (quintet.json)",
        min_length=1,
    )
    begin: bool | Literal["auto"] = key("auto", _BEGIN)


class NoteTokenizerConfig(ConfigSection):
    """The keys of all tokenizers of notes."""

    special_tokens: int = key(1024, "ids reserved for names, such as those of tasks and composers", unit="ids", ge=0)
    names: tuple[str, ...] = key((), "names of the first reserved ids, in this order; names in the data follow them")
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
        """Yield an error for more names than reserved ids."""
        if len(self.names) > self.special_tokens:
            yield config_error("names", f"{len(self.names)} names are more than special_tokens = {self.special_tokens}")


class ExponentialTimeTokenizerConfig(NoteTokenizerConfig):
    """Key presses and releases, velocities, and time steps that double: piano-gpt's ExponentialTimeTokenizer."""

    kind: Literal["exponential_time"] = key(..., "key events, velocities and time steps that double")
    time_unit: float = key(0.01, "the smallest time step", unit="seconds", gt=0)
    max_time_step: float = key(1.0, "time steps are shorter than this", unit="seconds", gt=0)
    velocity_bins: int = key(32, "number of equal bins for the velocities 0 to 127", unit="bins", ge=1, le=128)

    def errors(self) -> ConfigErrors:
        """Yield the errors of any tokenizer of notes, and one if no time step is left."""
        yield from super().errors()
        if self.max_time_step <= self.time_unit:
            yield config_error(
                "max_time_step", f"must be above time_unit = {self.time_unit}, because time steps are shorter than it"
            )


class MidiTokTokenizerConfig(NoteTokenizerConfig):
    """A tokenizer of the MidiTok library (Fradet et al. 2021) with one stream of ids."""

    kind: Literal["miditok"] = key(..., "a tokenizer of the MidiTok library")
    family: Literal["REMI", "TSD", "MIDILike", "Structured", "PerTok"] = key(
        "REMI", "class of the tokenizer in the library"
    )
    arguments: dict[str, Any] = key(
        {},
        'arguments of its TokenizerConfig; ranges of beats are written as in its files, `beat_res: {"0_4": 24}`. '
        "A beat is half a second",
    )


class MergedTokenizerConfig(ExponentialTimeTokenizerConfig):
    """Key presses and releases, velocities, and time steps that double: piano-gpt's ExponentialTimeTokenizer."""

    # As a base it is the default kind, so that its kind need not be given.
    kind: Literal["exponential_time"] = key("exponential_time", "key events, velocities and time steps that double")


class NoteBPETokenizerConfig(ConfigSection):
    """Byte-pair encoding (Sennrich et al. 2016) of another tokenizer's ids: piano-gpt's AwesomeMidiTokenizer."""

    kind: Literal["note_bpe"] = key(..., "byte-pair encoding of another tokenizer's ids, trained on the sources")
    base: MergedTokenizerConfig | MidiTokTokenizerConfig = key(
        MergedTokenizerConfig(), "tokenizer whose ids are merged", discriminator="kind"
    )
    vocab_size: int = key(10_000, "ids, including those of the base", unit="ids", ge=1)
    max_token_length: int = key(128, "most ids of the base in one id", unit="ids", ge=2)
    train_tokens: int = key(20_000_000, "ids of the base to train on, taken evenly from the sources", unit="ids", ge=1)


TokenizerConfig = Annotated[
    ByteTokenizerConfig
    | CharTokenizerConfig
    | BPETokenizerConfig
    | TiktokenTokenizerConfig
    | HuggingFaceTokenizerConfig
    | IdTokenizerConfig
    | SavedTokenizerConfig
    | ExponentialTimeTokenizerConfig
    | NoteBPETokenizerConfig
    | MidiTokTokenizerConfig,
    Field(discriminator="kind"),
]
