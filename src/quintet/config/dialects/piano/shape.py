"""Files of piano-gpt's tuning: what they say over the run that they start from, brought to the top."""

from __future__ import annotations

import copy
from typing import Any

from quintet.config.keypath import KeyPath, show
from quintet.config.provenance import Problem, RunFileError, place_of
from quintet.config.read import YamlDocument

OVERRIDES = "overrides"


def shape(document: YamlDocument) -> YamlDocument:
    """``document`` with the keys of `overrides` at the top, each with its place.

    Raises RunFileError where the same key stands at the top with another value.
    """
    if not isinstance(document.values.get(OVERRIDES), dict):
        return document
    inner, rest = document.apart(OVERRIDES)
    values = copy.deepcopy(rest.values)
    problems: list[Problem] = []
    _bring_up(values, inner.values, (), document, problems)
    if problems:
        raise RunFileError(problems)
    return YamlDocument(values, rest.places | {path: place for path, place in inner.places.items() if path})


def _bring_up(
    values: dict[str, Any], inner: dict[str, Any], path: KeyPath, document: YamlDocument, problems: list[Problem]
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
