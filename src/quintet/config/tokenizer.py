"""Tokenizers: how text becomes token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.note_tokenizers import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
)
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.sources import SourceConfig

_BEGIN = (
    "whether each document, prompt and measured text begins with the tokenizer's begin token (`bos_token`): true, "
    "false, or auto, as the tokenizer itself does"
)


class ByteTokenizerConfig(ConfigSection):
    """UTF-8 bytes: 256 ids and one for the end of a document. Nothing to train, nothing it cannot write."""

    kind: Literal["byte"] = key(..., "UTF-8 bytes")


class CharTokenizerConfig(ConfigSection):
    """One id for each character that occurs in the sources, as in char-rnn and nanoGPT's Shakespeare example."""

    kind: Literal["char"] = key(..., "characters of the sources")


class BPETokenizerConfig(ConfigSection):
    """A byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) trained on the sources."""

    kind: Literal["bpe"] = key("bpe", "byte-level byte-pair encoding, trained on the sources")
    vocab_size: int = key(4096, "ids, the 256 bytes and the end of a document included", unit="ids", ge=257)
    simplify: bool = key(
        False,
        "drop accents and characters other than printable ASCII, tab and newline, and make every digit a token of its "
        "own. It gives a tiny vocabulary more room, and is not lossless",
    )
    train_bytes: int = key(
        100_000_000, "text to train on, taken evenly from the sources; more changes little", unit="bytes", ge=1
    )
    sources: tuple[SourceConfig, ...] = key((), "what to train it on; data.sources when not given")


class TiktokenTokenizerConfig(ConfigSection):
    """OpenAI's encodings. Their files are fetched once; TIKTOKEN_CACHE_DIR names a folder that holds them already."""

    kind: Literal["tiktoken"] = key(..., "an encoding of OpenAI's tiktoken")
    name: Literal["gpt2", "p50k_base", "cl100k_base", "o200k_base"] = key("gpt2", "which encoding")


class HuggingFaceTokenizerConfig(ConfigSection):
    """Any fast tokenizer of the Hugging Face world."""

    kind: Literal["huggingface"] = key(..., "a Hugging Face tokenizer")
    path: str = key(
        ...,
        "a folder with tokenizer.json, that file itself, a pickled tokenizer (.pkl), or a name on the hub",
        min_length=1,
    )
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")
    begin: bool | Literal["auto"] = key("auto", _BEGIN)


class IdTokenizerConfig(ConfigSection):
    """No text at all: data that is token ids already (npy, bin, tatm, megatron, rows of ids). Prompts and what a model
    writes are ids as numbers, and there are no bits per byte."""

    kind: Literal["ids"] = key(..., "token ids without a text")
    vocab_size: int = key(..., "ids are 0 … vocab_size - 1", unit="ids", ge=1)
    end_id: int | None = key(None, "the id that ends a document; documents do not end when not given", unit="id", ge=0)

    def errors(self) -> ConfigErrors:
        """Yield an error for an end that is no id."""
        if self.end_id is not None and self.end_id >= self.vocab_size:
            yield config_error("end_id", f"{self.end_id} is none of the {self.vocab_size} ids; they begin at 0")


class SavedTokenizerConfig(ConfigSection):
    """The tokenizer of another run, so that a model that is tuned on other data keeps the ids that it learnt."""

    kind: Literal["saved"] = key(..., "the tokenizer of another run")
    path: str = key(
        ...,
        "a run folder, the name of a run under runs/, or a folder with a tokenizer that Quintet wrote (quintet.json)",
        min_length=1,
    )
    begin: bool | Literal["auto"] = key("auto", _BEGIN)


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
