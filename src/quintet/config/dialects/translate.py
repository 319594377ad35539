"""The translation of a dialect's file to a native run file, with the key that each value follows from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quintet.config.describe import plain
from quintet.config.dialects.dialect import Dialect, numbered
from quintet.config.dialects.file import SchemaFile, add_unrelated
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.keypath import is_mapping
from quintet.config.merge import merge
from quintet.config.provenance import Problem, RunFileError
from quintet.config.read import YamlDocument

Purpose = Literal["train", "prepare"]
"""The purpose of reading a file: to train, or to prepare data that is trained on later."""

EXTENSION = "quintet"
"""The section of native keys that a file of every dialect may have; they override the translation."""


@dataclass(frozen=True)
class Translation:
    """The native run file ``document``, ``notes`` for the user, and where `quintet prepare` writes.

    ``problems`` are those of the dialect's file, whose values are missing in ``document``, and ``not_here`` what the
    file names and this machine lacks.
    """

    document: YamlDocument
    notes: tuple[str, ...]
    prepare_to: Output | None = None
    problems: tuple[Problem, ...] = ()
    not_here: tuple[Problem, ...] = ()


def translate(
    dialect: Dialect, document: YamlDocument, purpose: Purpose = "train", variables: Collection[str] = ()
) -> Translation:
    """Translate ``document``, whose interpolations are resolved, to a native run file.

    ``variables`` are names at its top that interpolations used; they need not be keys of the dialect. The problems of
    the translation are keys that are unknown, wrong, missing or cannot be followed. Raises RunFileError if without them
    the file is none of the dialect.
    """
    own, extension = _apart(document)
    file = SchemaFile(dialect, dialect.normalize(own), purpose, extension.values if extension else None, variables)
    if file.theirs is None:
        raise RunFileError(file.problems, file.not_here)
    problems, native = file.problems, NativeBuilder(file)
    file.problems = []
    for key in dialect.keys:
        is_given = "[]" in key.path or file.has(key.path)
        if not key.role.to or is_given or not dialect.applies(file.document.values, key):
            continue
        default = file.default(key.path)
        if default is not None:
            native.set(key.role.to, plain(default), key.path)
    for key, path, value in file.items():
        index = next((step for step in path if isinstance(step, int)), 0)
        name = numbered(key.path, index)
        if key.role.to:
            native.set(numbered(key.role.to, index), plain(value), name)
        if key.role.no_effect:
            native.say(f"{name}: {key.role.no_effect}")
    dialect.rules(file.theirs, native)
    problems = add_unrelated(problems, file.problems, dialect)
    translated = YamlDocument(native.values, native.provenance)
    result = merge(translated, extension) if extension else translated
    return Translation(result, tuple(native.notes), native.prepare_to, tuple(problems), tuple(file.not_here))


def _apart(document: YamlDocument) -> tuple[YamlDocument, YamlDocument | None]:
    """Return the dialect's part of ``document`` and the section of native keys, None if there is none."""
    if EXTENSION not in document.values:
        return document, None
    if not isinstance(document.values[EXTENSION], dict):
        origin = document.provenance[(EXTENSION,)]
        raise RunFileError([Problem(origin, EXTENSION, "must be a section of native keys, such as data.cache_dir")])
    extension, own = document.apart(EXTENSION)
    return own, extension


def with_dialect_defaults(dialect: Dialect, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` of a file and the dialect's defaults, so that interpolations find both."""
    defaults: dict[str, Any] = {}
    for key in dialect.keys:
        if key.required or key.default is None or "[]" in key.path:
            continue
        here = defaults
        *sections, name = key.path.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = key.default
    return _override(defaults, values)


def _override(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in values.items():
        old = merged.get(name)
        merged[name] = _override(old, value) if is_mapping(old) and is_mapping(value) else value
    return merged
