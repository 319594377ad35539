"""The members of a language model that measuring and writing need."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds
from quintet.tokenize.simple import IdTokenizer


class Computing(Protocol):
    """On what and in which numbers a model is computed."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> str:
        """The type of the numbers in matrix products: fp32, bf16 or fp16."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Within it matrix products are computed in the type of the run."""
        ...


class ModelAndTokenizer(Protocol):
    """A model with its tokenizer, which writes and is measured: a `LanguageModel`, or a run while it trains."""

    @property
    def model(self) -> Model: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def compute(self) -> Computing: ...

    @property
    def bounds(self) -> TextBounds:
        """Where the texts of the model begin and end."""
        ...


def check_likelihood(language_model: ModelAndTokenizer, masked: bool = False) -> None:
    """Raise UserError for what gives a text no likelihood: a model that fills in hidden tokens (``masked``: its loss is
    that of hidden ones), one that reads in both directions, and tokens without a text."""
    config = language_model.model.config
    if masked:
        raise UserError(
            "tasks: the model learnt to fill in hidden tokens (loss.kind: masked), and benchmarks ask how "
            "likely a text is from left to right; there are none for it"
        )
    if isinstance(config, TransformerConfig) and config.attention.kind != "causal":
        raise UserError(
            "tasks: the model reads in both directions (model.attention.kind: bidirectional), and "
            "benchmarks ask how likely a text is from left to right; there are none for it"
        )
    if isinstance(language_model.tokenizer, IdTokenizer) or hasattr(language_model.tokenizer, "decode_notes"):
        raise UserError("tasks: the tokenizer writes no text, and benchmarks are texts; leave the tasks out")


def check_text_model(language_model: ModelAndTokenizer, where: str) -> None:
    """Raise UserError where the model or its tokenizer cannot model text; ``where`` names what asked for it."""
    attention = getattr(language_model.model.config, "attention", None)
    if getattr(attention, "kind", "causal") == "bidirectional":
        raise UserError(f"{where}: the model sees what it is to predict (attention.kind: bidirectional); leave it out")
    if not language_model.tokenizer.bytes_per_token().any():
        raise UserError(f"{where}: the tokenizer's ids stand for no text, so that there are no bytes; leave it out")
