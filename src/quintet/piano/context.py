"""The tokens of a piece's collection and composer, and the tokens around an answer."""

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
"""Collections of piano music, in the order of their ids in piano-gpt; the last is for all others."""

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
"""The token before an answer."""
END_OF_ANSWER = "<EOGENAI>"
"""The token after an answer, from which a model learns to stop."""

_MISSPELT = {"<MENDELSSON>": "Mendelssohn", "<RACHMANIOFF>": "Rachmaninoff"}
_SURNAMES = {
    token: re.compile(rf"\b{_MISSPELT.get(token, token[1:-1])}\b", re.IGNORECASE)
    for token in COMPOSERS
    if token != UNKNOWN_COMPOSER
}


def surname(token: str) -> str:
    """Return the surname in a composer's token, which `composer_token` finds in a name."""
    return _MISSPELT.get(token, token[1:-1].replace("_", " ").capitalize())


def dataset_token(source: Mapping[str, Any]) -> str:
    """Return the token of the collection ``source["dataset"]``, in any case; `<PIANO_FOR_AI>` for others and none."""
    name = f"<{source.get('dataset')}>".upper()
    return name if name in DATASETS else OTHER_DATASET


def composer_token(source: Mapping[str, Any]) -> str:
    """Return the token of the composer whose surname is a word of ``source["composer"]``.

    It is `<UNKNOWN_COMPOSER>` if the name has no known surname, or several (a composer and an arranger).
    """
    name = str(source.get("composer") or "")
    tokens = [token for token, surname in _SURNAMES.items() if surname.search(name)]
    return tokens[0] if len(tokens) == 1 else UNKNOWN_COMPOSER


def words_in(path: str) -> str:
    """Return the parts of a file's path as words, in which `composer_token` finds a composer's surname."""
    return " ".join(PurePath(path).with_suffix("").as_posix().replace("_", " ").replace("-", " ").split("/"))


def context_tokens(source: Mapping[str, Any]) -> tuple[str, str]:
    """Return the first tokens of each sample of a piece: its collection and its composer."""
    return dataset_token(source), composer_token(source)
