"""Files of piano-gpt's tuning: what they say over the run that they start from, brought to the top."""

from __future__ import annotations

import copy
from typing import Any

from quintet.config.keypath import KeyPath, show
from quintet.config.places import Problem, RunFileError, place_of
from quintet.config.read import Document

OVERRIDES = "overrides"


def shape(document: Document) -> Document:
    """``document`` with the keys of `overrides` at the top, each with its place.

    Raises RunFileError where the same key stands at the top with another value.
    """
    inner = document.values.get(OVERRIDES)
    if not isinstance(inner, dict):
        return document
    values = {name: copy.deepcopy(value) for name, value in document.values.items() if name != OVERRIDES}
    problems: list[Problem] = []
    _bring_up(values, inner, (), document, problems)
    if problems:
        raise RunFileError(problems)
    moved = {path[1:]: place for path, place in document.places.items() if path[:1] == (OVERRIDES,) and path[1:]}
    kept = {path: place for path, place in document.places.items() if path[:1] != (OVERRIDES,)}
    return Document(values, kept | moved)


def _bring_up(
    values: dict[str, Any], inner: dict[str, Any], path: KeyPath, document: Document, problems: list[Problem]
) -> None:
    for name, value in inner.items():
        here = (*path, name)
        old = values.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            _bring_up(old, value, here, document, problems)
        elif old is None or old == value:
            values[name] = value
        else:
            message = f"says {value!r}, and {show(here)} says otherwise; keep one"
            place = place_of((OVERRIDES, *here), document.places)
            problems.append(Problem(place, show((OVERRIDES, *here)), message))
