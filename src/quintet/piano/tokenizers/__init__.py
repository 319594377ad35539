"""How notes become token ids. To import this package makes its kinds known to `quintet.tokenize`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quintet.config.piano import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
)
from quintet.piano.notes import Notes
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer
from quintet.tokenize.folder import DESCRIPTION, damaged
from quintet.tokenize.registry import Documents, TokenizerKind, register

__all__ = ["ExponentialTimeTokenizer", "NoteTokenizer"]


def _build_exponential(config: ExponentialTimeTokenizerConfig, _: Documents) -> NoteTokenizer:
    return ExponentialTimeTokenizer(config)


def _build_miditok(config: MidiTokTokenizerConfig, _: Documents) -> NoteTokenizer:
    from quintet.piano.tokenizers.miditok import MidiTokTokenizer

    return MidiTokTokenizer(config)


def _build_bpe(config: NoteBPETokenizerConfig, documents: Documents) -> NoteTokenizer:
    from quintet.piano.tokenizers.bpe import train

    pieces: Iterable[Notes] = (one for one in documents() if isinstance(one, Notes))
    base = config.base
    made = _build_miditok(base, list) if isinstance(base, MidiTokTokenizerConfig) else _build_exponential(base, list)
    return train(config, made, pieces)


def _load(folder: Path, description: dict[str, Any]) -> NoteTokenizer:
    """A tokenizer that follows from its config and its special names alone."""
    try:
        special = tuple(map(str, description["special"]))
        if description["kind"] == "exponential_time":
            return ExponentialTimeTokenizer(ExponentialTimeTokenizerConfig(**description["config"]), special)
        from quintet.piano.tokenizers.miditok import MidiTokTokenizer

        return MidiTokTokenizer(MidiTokTokenizerConfig(**description["config"]), special)
    except (KeyError, TypeError, ValidationError):
        raise damaged(folder / DESCRIPTION, "it does not say how notes are written") from None


def _load_bpe(folder: Path, description: dict[str, Any]) -> NoteTokenizer:
    from quintet.piano.tokenizers.bpe import load

    return load(folder, description)


register("exponential_time", TokenizerKind(_build_exponential, _load))
register("miditok", TokenizerKind(_build_miditok, _load))
register("note_bpe", TokenizerKind(_build_bpe, _load_bpe, trained=True))
