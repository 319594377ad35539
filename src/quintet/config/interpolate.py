"""``${…}`` in a run file replaced by what it stands for."""

from __future__ import annotations

import copy
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

from quintet.config.describe import with_defaults
from quintet.config.keypath import KeyPath, show, walk
from quintet.config.places import Problem, RunFileError, place_of
from quintet.config.read import Document, first_line


def resolve(document: Document) -> dict[str, Any]:
    """The values of ``document`` with every interpolation resolved; it finds what the schema gives by default, too.

    Raises RunFileError with every interpolation that names nothing, and every value that is OmegaConf's ``???``.
    """
    values = copy.deepcopy(document.values)
    texts = [(path, text) for path, text in walk(document.values) if isinstance(text, str)]
    asked = [(path, text) for path, text in texts if "${" in text]
    background = OmegaConf.create(with_defaults(document.values)) if asked else None
    problems = []
    for path, text in asked:
        try:
            _put(values, path, _resolved(background, path))
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append(Problem(place_of(path, document.places), show(path), _message(text, error)))
    for path, text in texts:
        if text == "???" and not isinstance(path[-1], int):
            place = place_of(path, document.places)
            problems.append(Problem(place, show(path), "is ???, which stands for a value that must be given; give it"))
    if problems:
        raise RunFileError(problems)
    return values


def _resolved(background: Any, path: KeyPath) -> Any:
    for step in path[:-1]:
        background = background[step]
    value = background[path[-1]]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _put(values: Any, path: KeyPath, value: Any) -> None:
    for step in path[:-1]:
        values = values[step]
    values[path[-1]] = value


def _message(text: str, error: Exception) -> str:
    if isinstance(error, InterpolationKeyError):
        return (
            f"{text}: {first_line(error).removeprefix('Interpolation key ').replace(' not found', ' is no key here')}"
        )
    if isinstance(error, UnsupportedInterpolationType):
        return f"{text}: there is no such function; there are oc.env, oc.select, oc.decode, oc.create"
    reason = first_line(error)
    if "Environment variable" in reason:
        variable = reason.partition("Environment variable ")[2].partition(" ")[0]
        mend = "set it, or give a default: ${oc.env:NAME,default}"
        return f"{text}: the environment variable {variable} is not set; {mend}"
    if isinstance(error, RecursionError) or "Recursive" in reason:
        return f"{text}: refers to itself"
    return f"{text}: {reason}"
