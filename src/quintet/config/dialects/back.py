"""A native run file written in a dialect, as far as the dialect can express it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml
from pydantic import ValidationError

from quintet.config.describe import KeyInfo, plain
from quintet.config.dialects.dialect import Dialect, Put, numbered
from quintet.config.dialects.translate import EXTENSION, translate
from quintet.config.dump import differences
from quintet.config.errors import problems_of
from quintet.config.keypath import ABSENT, is_list, lookup, parse, path_of, show, walk
from quintet.config.merge import MISSING
from quintet.config.provenance import Origin, Problem, Provenance, RunFileError
from quintet.config.read import YamlDocument
from quintet.config.schema import RunConfig


@dataclass(frozen=True)
class Written:
    """A file of a dialect, and a line for each value of the native run file that it does not express."""

    text: str
    lost: tuple[str, ...]


def translate_back(dialect: Dialect, config: RunConfig) -> Written:
    """Write ``config`` as a file of ``dialect``: the keys with `to`, then those of the dialect's own ``back``.

    The file is translated to a native run file again. The values that come out different are lost.
    """
    values: dict[str, Any] = {}

    def put(path: str, value: Any) -> None:
        if path == EXTENSION:
            values[EXTENSION] = value
            return
        try:
            _set(values, path, dialect.key(path).write(value))
        except ValueError:
            return  # the comparison reports what is missing

    native = plain(config)
    for key in dialect.keys:
        if key.role.to and dialect.writes(config, key) and not key.role.unsupported:
            _copy(key, native, put)
    dialect.back(config, put)
    values = _ordered(dialect, values)
    text = f"# {config.name}, written for {dialect.title}\n" + yaml.safe_dump(values, sort_keys=False, width=120)
    return Written(text, tuple(_lost(dialect, values, config)))


def _copy(key: KeyInfo, native: Mapping[str, Any], put: Put) -> None:
    """Put the value of ``native`` that ``key`` sets; in a list, that of each element."""
    elements, is_in_list, _ = key.role.to.partition("[]")
    for index in range(len(lookup(native, path_of(elements)))) if is_in_list else (0,):
        value = lookup(native, path_of(numbered(key.role.to, index)))
        if value is not ABSENT and value is not None:
            put(numbered(key.path, index), value)


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    here: Any = values
    steps = path_of(path)
    for step, following in pairwise(steps):
        inner: Any = [] if isinstance(following, int) else {}
        if is_list(here):
            here += [{} for _ in range(len(here), step + 1)] if isinstance(step, int) else []
            here = here[step]
        else:
            here = here.setdefault(step, inner)
    here[steps[-1]] = value


def _ordered(dialect: Dialect, values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` in the order of the schema, with ??? for each missing key that a file must have."""
    ordered: dict[str, Any] = {}
    for key in dialect.keys:
        path, in_list, _ = key.path.partition("[]")
        value = lookup(values, path_of(path))
        if value is not ABSENT:
            _set(ordered, path, value)
        elif key.required and not in_list:
            _set(ordered, path, MISSING)
    return ordered | {name: value for name, value in values.items() if name == EXTENSION}


def _lost(dialect: Dialect, values: dict[str, Any], config: RunConfig) -> list[str]:
    """Describe the values of ``config`` that translating ``values`` does not give back, a line for each.

    Keys that the dialect refuses are removed, and keys that must be given get a stand-in, until the translation is a
    run.
    """
    lost = [f"{show(path)} must be given by hand" for path, value in walk(values) if value == MISSING]
    values, stand_in = copy.deepcopy(values), dict(dialect.stand_in)
    problems, result = _translate(dialect, values, config.name)
    while result is None:
        removed = [problem for problem in problems if _remove(values, problem.key)]
        lost += [f"{problem.key}: {problem.message}" for problem in removed]
        if not removed and not stand_in:
            return [*lost, *(f"{problem.key}: {problem.message}" for problem in problems)]
        while not removed and stand_in:
            key, value = stand_in.popitem()
            if lookup(values, path_of(key)) in (ABSENT, MISSING):
                _set(values, key, value)
        problems, result = _translate(dialect, values, config.name)
    changed = differences(config, result)
    other_kinds = tuple(key.removesuffix("kind") for key, _, _ in changed if key.endswith(".kind"))
    return lost + [
        f"{key}: {old} (it would be {new})"
        for key, old, new in changed
        if key.endswith(".kind") or not key.startswith(other_kinds)  # another kind has other options
    ]


def _translate(dialect: Dialect, values: dict[str, Any], name: str) -> tuple[list[Problem], RunConfig | None]:
    """Return the config of the file ``values`` of ``dialect``, or its problems and None."""
    document = YamlDocument(values, {path: Origin("written") for path, _ in walk(values)})
    native: dict[str, Any] = {}
    provenance: Provenance = {(): Origin("written")}
    try:
        translation = translate(dialect, document)
        if translation.problems:
            return list(translation.problems), None
        native, provenance = {"name": name} | translation.document.values, translation.document.provenance
        return [], RunConfig.model_validate(native)
    except RunFileError as error:
        return error.details, None
    except ValidationError as error:
        return [problem.in_its_words() for problem in problems_of(error, native, provenance)], None


def _remove(values: dict[str, Any], key: str) -> bool:
    """Remove ``key`` from ``values``. Return False if it is not there."""
    *sections, name = parse(key) or ("",)
    section = lookup(values, tuple(sections))
    if not isinstance(section, dict) or name not in section:
        return False
    del section[name]
    return True
