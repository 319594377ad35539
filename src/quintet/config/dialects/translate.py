"""A dialect's file turned into a native run file, every value with the key that says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quintet.config.describe import plain
from quintet.config.dialects.dialect import Dialect, numbered
from quintet.config.dialects.file import SchemaFile, with_those_that_follow
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.keypath import is_mapping
from quintet.config.merge import merge
from quintet.config.provenance import Problem, RunFileError
from quintet.config.read import YamlDocument

Purpose = Literal["train", "prepare"]
"""The purpose a file is read for: to train, or to prepare data that lies elsewhere afterwards."""

EXTENSION = "quintet"
"""A section that every dialect may have: native keys, which stand above the translation."""


@dataclass(frozen=True)
class Translation:
    """A native run file, what its user should know of how it came about, and where `quintet prepare` writes to; and the
    ``problems`` of the dialect's file, without which it would hold more, and what it names that is ``not_here``."""

    document: YamlDocument
    notes: tuple[str, ...]
    prepare_to: Output | None = None
    problems: tuple[Problem, ...] = ()
    not_here: tuple[Problem, ...] = ()


def translate(
    dialect: Dialect, document: YamlDocument, purpose: Purpose = "train", variables: Collection[str] = ()
) -> Translation:
    """The native run file that ``document``, its interpolations resolved, describes.

    ``variables`` are names at its top that interpolations used: they need not be keys of the dialect.
    Every key that is unknown, wrong, missing or cannot be followed is among its problems. Raises RunFileError where
    what is left is no file of the dialect.
    """
    own, native_part = _apart(document)
    given = SchemaFile(dialect, dialect.shape(own), purpose, native_part.values if native_part else None, variables)
    if given.theirs is None:
        raise RunFileError(given.problems, given.not_here)
    problems, native = given.problems, NativeBuilder(given)
    given.problems = []
    for key in dialect.keys:
        if key.role.to and "[]" not in key.path and not given.has(key.path):
            default = given.default(key.path)
            if default is not None:
                native.set(key.role.to, plain(default), key.path)
    for key, path, value in given.items():
        index = next((step for step in path if isinstance(step, int)), 0)
        name = numbered(key.path, index)
        if key.role.to:
            native.set(numbered(key.role.to, index), plain(value), name)
        if key.role.no_effect:
            native.say(f"{name}: {key.role.no_effect}")
    dialect.rules(given.theirs, native)
    problems = with_those_that_follow(problems, given.problems, dialect)
    translated = YamlDocument(native.values, native.provenance)
    whole = merge(translated, native_part) if native_part else translated
    return Translation(whole, tuple(native.notes), native.prepare_to, tuple(problems), tuple(given.not_here))


def _apart(document: YamlDocument) -> tuple[YamlDocument, YamlDocument | None]:
    """The dialect's own part of a file, and the native part, None where there is none."""
    if EXTENSION not in document.values:
        return document, None
    if not isinstance(document.values[EXTENSION], dict):
        origin = document.provenance[(EXTENSION,)]
        raise RunFileError([Problem(origin, EXTENSION, "must be a section of native keys, such as data.cache_dir")])
    native, own = document.apart(EXTENSION)
    return own, native


def with_dialect_defaults(dialect: Dialect, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a file, with the document's defaults for interpolations to find."""
    full: dict[str, Any] = {}
    for key in dialect.keys:
        if key.required or key.default is None or "[]" in key.path:
            continue
        here = full
        *sections, name = key.path.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = key.default
    return _over(full, values)


def _over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _over(old, value) if is_mapping(old) and is_mapping(value) else value
    return merged
