"""``${…}`` in a run file replaced by what it stands for."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

from quintet.config.describe import with_defaults
from quintet.config.keypath import KeyPath, show, walk
from quintet.config.provenance import Problem, RunFileError, origin_of
from quintet.config.read import YamlDocument
from quintet.errors import one_line

_REFERENCE = re.compile(r"\$\{\s*(?:oc\.select:\s*)?(\.*)\[?([^\s.:,\[\]{}$]+)\]?\s*(?=[.},\[])")
"""The points and the first name of a reference to a key: ``${name}``, ``${..name.inner}``, ``${oc.select:name,0}``."""


def resolve(
    document: YamlDocument, defaults: Callable[[dict[str, Any]], dict[str, Any]] = with_defaults
) -> dict[str, Any]:
    """The values of ``document`` with every interpolation resolved; they may also refer to values that ``defaults``
    fills in, which are the schema's unless a dialect has its own.

    Raises RunFileError with every interpolation that names nothing, and every value that is OmegaConf's ``???``.
    """
    values = copy.deepcopy(document.values)
    texts = [(path, text) for path, text in walk(document.values) if isinstance(text, str)]
    asked = [(path, text) for path, text in texts if "${" in text]
    background = OmegaConf.create(defaults(document.values)) if asked else None
    problems: list[Problem] = []
    for path, text in asked:
        try:
            _put(values, path, _resolved(background, path))
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append(Problem(origin_of(path, document.provenance), show(path), _message(text, error)))
    for path, text in texts:
        if text == "???" and not isinstance(path[-1], int):
            origin = origin_of(path, document.provenance)
            problems.append(Problem(origin, show(path), "is ???, which stands for a value that must be given; give it"))
    if problems:
        raise RunFileError(problems)
    return values


def variables_of(document: YamlDocument) -> frozenset[str]:
    """The names at the top of ``document`` that interpolations in it refer to."""
    found: set[str] = set()
    for path, text in walk(document.values):
        for points, name in _REFERENCE.findall(text) if isinstance(text, str) else ():
            if len(points) in (0, len(path)):  # a point for each section out of which the reference leads
                found.add(name)
    return frozenset(found)


def _copies(pattern: Mapping[Any, Any] | str, count: int, mark: str) -> list[Any]:
    """``count`` copies of a text, or of a section, with ``mark`` in its texts replaced by 0, 1, 2 …

    >>> _copies("part-#", 2, "#")
    ['part-0', 'part-1']
    """

    def numbered(value: Any, index: int) -> Any:
        return value.replace(mark, str(index)) if isinstance(value, str) else value

    if isinstance(pattern, Mapping):
        return [{str(name): numbered(value, index) for name, value in pattern.items()} for index in range(count)]
    return [numbered(pattern, index) for index in range(count)]


def _divided(a: float, b: float) -> float:
    return a / b


def _floor_divided(a: float, b: float) -> float:
    return a // b


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _divided,
    "fdiv": _floor_divided,
    "for": _copies,
    "now": _now,
}
"""Resolvers of ``${name:…}`` besides OmegaConf's own: PhyAGI's arithmetic and copies, and Hydra's clock."""

for _name, _function in FUNCTIONS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)


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
        reason = one_line(error, lines=1).removeprefix("Interpolation key ")
        return f"{text}: {reason.replace(' not found', ' is no key here')}"
    if isinstance(error, UnsupportedInterpolationType):
        known = ", ".join(("oc.env", "oc.select", "oc.decode", "oc.create", *FUNCTIONS))
        return f"{text}: there is no such function; there are {known}"
    reason = one_line(error, lines=1)
    if "Environment variable" in reason:
        variable = reason.partition("Environment variable ")[2].partition(" ")[0]
        mend = "set it, or give a default: ${oc.env:NAME,default}"
        return f"{text}: the environment variable {variable} is not set; {mend}"
    if isinstance(error, RecursionError) or "Recursive" in reason:
        return f"{text}: refers to itself"
    return f"{text}: {reason}"
