"""The tokens that say where a piece comes from and who wrote it, and those around an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

DATASETS = (
    "<MAESTRO>",
    "<PIJAMA>",
    "<VGMIDI>",
    "<MUSIC-NET>",
    "<PIANO-MIDI-DE>",
    "<LAKH-LMD-FULL>",
    "<GIANT-MIDI>",
    "<IMSLP>",
    "<ATEPP-1.1>",
    "<PIANO_FOR_AI>",
)
"""Collections of piano music, in the order of their ids in piano-gpt; the last stands for any other."""

COMPOSERS = (
    "<SCRIABIN>",
    "<FRANCK>",
    "<MOZART>",
    "<CHOPIN>",
    "<MENDELSSON>",
    "<LISZT>",
    "<SCHUBERT>",
    "<BRAHMS>",
    "<HAYDN>",
    "<BEETHOVEN>",
    "<BALAKIREV>",
    "<SCHUMANN>",
    "<RACHMANIOFF>",
    "<UNKNOWN_COMPOSER>",
    "<BACH>",
)
"""Composers in the order and spelling of piano-gpt, so that ids and names stay those of its checkpoints."""

OTHER_DATASET = "<PIANO_FOR_AI>"
UNKNOWN_COMPOSER = "<UNKNOWN_COMPOSER>"
ANSWER = "<GENAI>"
"""Stands before the answer."""
END_OF_ANSWER = "<EOGENAI>"
"""Stands after the answer, so that a model learns to stop."""

_MISSPELT = {"<MENDELSSON>": "Mendelssohn", "<RACHMANIOFF>": "Rachmaninoff"}
_SURNAMES = {
    token: re.compile(rf"\b{_MISSPELT.get(token, token[1:-1])}\b", re.IGNORECASE)
    for token in COMPOSERS
    if token != UNKNOWN_COMPOSER
}


def surname(token: str) -> str:
    """Return the name of the composer of a token: what `composer_token` finds in a name."""
    return _MISSPELT.get(token, token[1:-1].replace("_", " ").capitalize())


def dataset_token(source: Mapping[str, Any]) -> str:
    """The token of the collection named by ``source["dataset"]`` in any case; `<PIANO_FOR_AI>` for others and none."""
    name = f"<{source.get('dataset')}>".upper()
    return name if name in DATASETS else OTHER_DATASET


def composer_token(source: Mapping[str, Any]) -> str:
    """The token of the composer whose surname is a word of ``source["composer"]``.

    None of the known surnames, or several of them (an arranger beside a composer), is `<UNKNOWN_COMPOSER>`.
    """
    name = str(source.get("composer") or "")
    found = [token for token, surname in _SURNAMES.items() if surname.search(name)]
    return found[0] if len(found) == 1 else UNKNOWN_COMPOSER


def words_in(path: str) -> str:
    """The parts of a file's path as words, among which `composer_token` finds a composer's surname."""
    return " ".join(PurePath(path).with_suffix("").as_posix().replace("_", " ").replace("-", " ").split("/"))


def context_tokens(source: Mapping[str, Any]) -> tuple[str, str]:
    """Return the tokens that every sample of a piece begins with: its collection, its composer."""
    return dataset_token(source), composer_token(source)
