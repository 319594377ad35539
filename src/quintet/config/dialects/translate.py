"""A dialect's file turned into a native run file, every value with the key that says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.dialects.table import REQUIRED, Dialect, Key, numbered
from quintet.config.merge import merge
from quintet.config.provenance import Problem, RunFileError
from quintet.config.read import YamlDocument

Purpose = Literal["train", "prepare"]
"""What a file is read for: to train, or to prepare data that lies elsewhere afterwards."""

EXTENSION = "quintet"
"""A section that every dialect may have: native keys, which stand above the translation."""


@dataclass(frozen=True)
class Translation:
    """A native run file, what its user should know of how it came about, and where `quintet prepare` writes to."""

    document: YamlDocument
    notes: tuple[str, ...]
    prepare_to: Output | None = None


def translate(
    dialect: Dialect, document: YamlDocument, purpose: Purpose = "train", variables: Collection[str] = ()
) -> Translation:
    """The native run file that ``document``, its interpolations resolved, describes.

    ``variables`` are names at its top that interpolations used: they need not be keys of the dialect.
    Raises RunFileError with every key that is unknown, wrong, missing or cannot be followed.
    """
    own, native_part = _apart(document)
    given = DialectFile(dialect, dialect.shape(own), purpose, native_part.values if native_part else None, variables)
    if given.problems:
        raise RunFileError(given.problems)
    native = NativeBuilder(given)
    for key in dialect.keys:
        if key.to and "[]" not in key.path and key.default not in (None, REQUIRED) and not given.has(key.path):
            native.set(key.to, key.default, key.path)
    for key, path, value in given.items():
        index = next((step for step in path if isinstance(step, int)), 0)
        name = numbered(key.path, index)
        if key.to:
            native.set(numbered(key.to, index), value, name)
        if key.no_effect:
            native.say(f"{name}: {key.no_effect}")
    dialect.rules(given, native)
    if given.problems:
        raise RunFileError(given.problems)
    translated = YamlDocument(native.values, native.places)
    whole = merge(translated, native_part) if native_part else translated
    return Translation(whole, tuple(native.notes), native.prepare_to)


def _apart(document: YamlDocument) -> tuple[YamlDocument, YamlDocument | None]:
    """The dialect's own part of a file, and the native part, None where there is none."""
    if EXTENSION not in document.values:
        return document, None
    if not isinstance(document.values[EXTENSION], dict):
        place = document.places[(EXTENSION,)]
        raise RunFileError([Problem(place, EXTENSION, "must be a section of native keys, such as data.cache_dir")])
    native, own = document.apart(EXTENSION)
    return own, native


def with_dialect_defaults(dialect: Dialect, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a file, with the document's defaults for interpolations to find."""
    full: dict[str, Any] = {}
    for key in dialect.keys:
        if key.default in (None, REQUIRED) or "[]" in key.path:
            continue
        here = full
        *sections, name = key.path.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = _written(key)
    return _over(full, values)


def _written(key: Key) -> Any:
    try:
        return key.value.write(key.default)
    except ValueError:
        return key.default


def _over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
