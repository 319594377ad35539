"""A native run file written in a dialect, as far as the dialect can express it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml
from pydantic import ValidationError

from quintet.config.describe import KeyInfo, plain
from quintet.config.dialects.dialect import Dialect, numbered
from quintet.config.dialects.translate import EXTENSION, translate
from quintet.config.dump import differences
from quintet.config.errors import problems_of
from quintet.config.keypath import ABSENT, is_list, lookup, parse, path_of, show, walk
from quintet.config.provenance import Origin, Problem, Provenance, RunFileError
from quintet.config.read import YamlDocument
from quintet.config.schema import RunConfig


@dataclass(frozen=True)
class Written:
    """A file of a dialect, and a line for each thing of the native run file that it does not say."""

    text: str
    lost: tuple[str, ...]


def translate_back(dialect: Dialect, config: RunConfig) -> Written:
    """``config`` as a file of ``dialect``.

    The table is followed backwards, then the dialect's own ``back``. The result is translated again: where that gives
    another value than ``config`` has, the dialect cannot express it, and it is listed.
    """
    values: dict[str, Any] = {}

    def put(path: str, value: Any) -> None:
        if path == EXTENSION:
            values[EXTENSION] = value
            return
        key = dialect.key(path)
        try:
            _set(values, path, key.write(value))
        except ValueError:
            return  # the comparison below finds what is missing

    native = plain(config)
    for key in dialect.keys:
        if key.role.to and dialect.writes(config, key) and not key.role.unsupported:
            _copy(key, native, put)
    dialect.back(config, put)
    values = _reduced(dialect, values)
    text = f"# {config.name}, written for {dialect.title}\n" + yaml.safe_dump(values, sort_keys=False, width=120)
    return Written(text, tuple(_lost(dialect, values, config)))


def _copy(key: KeyInfo, native: Any, put: Any) -> None:
    """Put what ``native`` has where ``key`` goes; each element of a list goes to the element of its number."""
    counted = key.role.to.count("[]")
    count = len(lookup(native, path_of(key.role.to.partition("[]")[0]))) if counted else 1
    for index in range(count):
        found = lookup(native, path_of(numbered(key.role.to, index)))
        if found is not ABSENT and found is not None:
            put(numbered(key.path, index), found)


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


def _reduced(dialect: Dialect, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` in the order of the table, without keys that the dialect itself would refuse."""
    ordered: dict[str, Any] = {}
    for key in dialect.keys:
        if "[]" in key.path:
            top = key.path.partition("[]")[0]
            found = lookup(values, path_of(top))
            if found is not ABSENT:
                _set(ordered, top, found)
            continue
        found = lookup(values, path_of(key.path))
        if found is not ABSENT:
            _set(ordered, key.path, found)
        elif key.required:
            _set(ordered, key.path, "???")
    return ordered | {name: value for name, value in values.items() if name == EXTENSION}


def _again(dialect: Dialect, values: dict[str, Any], name: str) -> tuple[list[Problem], RunConfig | None]:
    """The config that a file of ``dialect`` is, or what is wrong with it."""
    document = YamlDocument(values, {path: Origin("written") for path, _ in walk(values)})
    native: dict[str, Any] = {}
    provenance: Provenance = {(): Origin("written")}
    try:
        translation = translate(dialect, document)
        if translation.problems:
            return list(translation.problems), None
        translated = translation.document
        native, provenance = {"name": name} | translated.values, translated.provenance
        return [], RunConfig.model_validate(native)
    except RunFileError as error:
        return error.details, None
    except ValidationError as error:
        return [problem.in_its_words() for problem in problems_of(error, native, provenance)], None


def _drop(values: dict[str, Any], key: str) -> bool:
    """Remove ``key``, which the dialect refuses, from ``values``; whether it was there."""
    *sections, name = parse(key) or ("",)
    here = lookup(values, tuple(sections))
    if not isinstance(here, dict) or name not in here:
        return False
    del here[name]
    return True


def _lost(dialect: Dialect, values: dict[str, Any], config: RunConfig) -> list[str]:
    """The values of ``config`` that translating ``values`` again does not give back."""
    missing = [show(path) for path, value in walk(values) if value == "???"]
    found = [f"{key} must be given by hand" for key in missing]
    checked, stand_in = copy.deepcopy(values), dict(dialect.stand_in)
    problems, again = _again(dialect, checked, config.name)
    while again is None:
        dropped = [problem for problem in problems if _drop(checked, problem.key)]
        found += [f"{problem.key}: {problem.message}" for problem in dropped]
        if not dropped and not stand_in:
            return [*found, *(f"{problem.key}: {problem.message}" for problem in problems)]
        while not dropped and stand_in:
            key, value = stand_in.popitem()
            if lookup(checked, path_of(key)) in (ABSENT, "???"):
                _set(checked, key, value)
        problems, again = _again(dialect, checked, config.name)
    changed = differences(config, again)
    other_kinds = tuple(key.removesuffix("kind") for key, _, _ in changed if key.endswith(".kind"))
    return found + [
        f"{key}: {old} (it would be {new})"
        for key, old, new in changed
        if key.endswith(".kind") or not key.startswith(other_kinds)  # the options of another kind are no news
    ]
