"""Kinds of tokenizers that packages above this one make: they enter them here, so that nothing here imports those."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer

Documents = Callable[[], Iterable[Any]]
"""The documents of a corpus: texts, or what else the kind is made for."""


@dataclass(frozen=True)
class TokenizerKind:
    """How a kind of tokenizer comes to be.

    ``build`` makes one from its config and the documents of the corpus; ``trained`` says that it needs these, so it is
    made once and kept. ``load`` reads the folder that ``save`` wrote, given what its `quintet.json` says.
    """

    build: Callable[[Any, Documents], Tokenizer]
    load: Callable[[Path, dict[str, Any]], Tokenizer]
    trained: bool = False


_KINDS: dict[str, TokenizerKind] = {}


def register(name: str, kind: TokenizerKind) -> None:
    """Make ``tokenizer.kind: name`` known."""
    _KINDS[name] = kind


def is_registered(name: object) -> bool:
    return name in _KINDS


def registered(name: str) -> TokenizerKind:
    """The kind of this name. Raises UserError where no package that was imported makes it."""
    if name not in _KINDS:
        raise UserError(
            f"tokenizer.kind: {name} is made by a package that is not imported; in Python, import "
            "quintet.piano.tokenizers first"
        )
    return _KINDS[name]
