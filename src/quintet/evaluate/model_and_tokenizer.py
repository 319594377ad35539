"""The protocol of a language model that is measured or writes, and checks of what it can do."""

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
    """The device and the precision that a model is computed with."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> str:
        """The precision of matrix products: fp32, bf16 or fp16."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Within, matrix products are computed in ``precision``."""
        ...


class ModelAndTokenizer(Protocol):
    """A model with its tokenizer: a `LanguageModel`, or a run while it trains."""

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
    """Raise UserError if the model gives texts no likelihood: it fills in hidden tokens (``masked``), it reads in both
    directions, or its tokens have no text."""
    config = language_model.model.config
    if masked:
        raise UserError(
            "tasks: the model was trained to fill in hidden tokens (loss.kind: masked), and benchmarks ask how "
            "likely a text is from left to right; remove the tasks"
        )
    if isinstance(config, TransformerConfig) and config.attention.kind != "causal":
        raise UserError(
            "tasks: the model reads in both directions (model.attention.kind: bidirectional), and "
            "benchmarks ask how likely a text is from left to right; remove the tasks"
        )
    if isinstance(language_model.tokenizer, IdTokenizer) or hasattr(language_model.tokenizer, "decode_notes"):
        raise UserError("tasks: the tokenizer writes no text, and benchmarks are texts; remove the tasks")


def check_text_model(language_model: ModelAndTokenizer, where: str) -> None:
    """Raise UserError, which begins with ``where``, if the model or its tokenizer cannot model text."""
    attention = getattr(language_model.model.config, "attention", None)
    if getattr(attention, "kind", "causal") == "bidirectional":
        raise UserError(f"{where}: the model sees what it must predict (attention.kind: bidirectional); leave it out")
    if not language_model.tokenizer.bytes_per_token().any():
        raise UserError(f"{where}: the tokenizer's ids have no text, so that there are no bytes; leave it out")
