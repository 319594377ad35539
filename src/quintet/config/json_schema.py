"""The run file as JSON Schema, from which an editor completes and checks while one types."""

from __future__ import annotations

from typing import Any

from quintet.config.describe import KeyInfo, run_file
from quintet.config.dialects.dialect import Dialect, pattern
from quintet.config.dialects.translate import EXTENSION
from quintet.config.keypath import is_mapping
from quintet.config.reference import notes_of
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection

_INTERPOLATION = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "an interpolation, ${key.path} or ${oc.env:NAME}",
}
_EXTENDS = {
    "description": "a run file to start from, or several, relative to this file; what is written here wins",
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}],
}
_TEXT_ABOUT = ("description", "default", "unit")


def run_file_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a run file as it is written: kinds may be left out where a section has a default,
    ``${…}`` may stand for every single value, and a file that ``extends`` others may leave out what they give."""
    schema = _schema(RunConfig, "Quintet run file")
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = _required(run_file().keys)
    return schema


def dialect_schema(dialect: Dialect) -> dict[str, Any]:
    """JSON Schema of a file of ``dialect`` as it is written: aliases and other nestings are keys, too, `quintet` holds
    native ones, and what is missing may come from another file, so nothing is required."""
    schema = _schema(dialect.schema, f"{dialect.title} run file")
    schema["properties"] |= {
        EXTENSION: {"type": "object", "description": "native keys, which stand above the translation"},
        "defaults": {"description": "Hydra's list of files to compose", "type": "array"},
        "hydra": {"description": "settings of Hydra itself", "type": "object"},
    }
    for key in dialect.keys:
        told = _at(schema, schema, pattern(key.path))
        told["description"] += "".join(f"; {word.lower()}: {text}" for word, text in notes_of(key)).replace("`", "")
        if key.role.unsupported:
            told["deprecated"] = True
        if {"type": "null"} not in told["anyOf"]:
            told["anyOf"].append({"type": "null"})
        for alias in key.aliases:
            *around, name = pattern(alias)
            _properties(schema, tuple(around)).setdefault(name, told)
    short = dialect.shorthands | {steps: "" for steps in dialect.own_sections if steps[-1:] == ("[]",)}
    for steps, shorthand in short.items():
        _also_short(schema, steps, shorthand)
    return schema


def _also_short(schema: dict[str, Any], steps: tuple[str, ...], shorthand: str) -> None:
    """Let the section at ``steps`` also be a value by itself, and one of a list stand by itself."""
    *around, name = steps[:-1] if steps[-1] == "[]" else steps
    beside = _properties(schema, tuple(around))
    usual = beside[name]
    one = usual.get("items", usual)
    short = [_at(schema, one, (shorthand,))] if shorthand else []
    beside[name] = {"anyOf": [usual, *([one] if one is not usual else []), *short]}


def _resolved(schema: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    here = here["anyOf"][0] if "properties" not in here and "$ref" not in here and "anyOf" in here else here
    return schema["$defs"][here["$ref"].rpartition("/")[2]] if "$ref" in here else here


def _at(schema: dict[str, Any], here: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    """The schema of what is at ``steps`` inside ``here``, a part of ``schema``."""
    for step in steps:
        here = _resolved(schema, here)
        here = here["items"] if step == "[]" else here["properties"][step]
    return here


def _properties(schema: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    """The properties of the section at ``steps``, which is made where there is none."""
    here = schema
    for step in steps:
        here = _resolved(schema, here)
        section: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
        here = here.setdefault("items", section) if step == "[]" else here["properties"].setdefault(step, section)
    return _resolved(schema, here)["properties"]


def _schema(config: type[ConfigSection], title: str) -> dict[str, Any]:
    """JSON Schema of a file of ``config``, in which only a section with a kind says what it requires: another file may
    give the rest."""
    schema = config.model_json_schema()
    parts: dict[str, Any] = schema.pop("$defs")
    for part in [schema, *parts.values()]:
        part.pop("title", None)
        names = sorted(part["properties"], key=lambda name: name != "kind")
        part["properties"] = {name: _property(name, part["properties"][name]) for name in names}
        if part is schema or "kind" not in part["properties"]:
            part.pop("required", None)
    schema["properties"]["extends"] = _EXTENDS
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **schema, "$defs": parts}


def _required(keys: tuple[KeyInfo, ...]) -> dict[str, Any]:
    """The keys that a run file that extends no other must have in its sections without kinds.

    A section with a kind says itself what it requires, for it is given as a whole.
    """
    inner = {key.name: _required(key.kinds[""].keys) for key in keys if "" in key.kinds}
    found: dict[str, Any] = {}
    names = [key.name for key in keys if key.required and key.path != "name"]
    if names:
        found["required"] = names
    if any(inner.values()):
        found["properties"] = {name: conditions for name, conditions in inner.items() if conditions}
    return found


def _property(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One key's schema: the unit told in the description, ``${…}`` allowed where it stands for a single value."""
    about = {word: found[word] for word in _TEXT_ABOUT if word in found}
    rest = {
        word: value for word, value in found.items() if word not in (*_TEXT_ABOUT, "title", "discriminator", "role")
    }
    if "unit" in about:
        about["description"] += f" (unit: {about.pop('unit')})"
    if is_mapping(about.get("default")):
        del about["default"]  # an editor would write all of it into the file
    if is_mapping(rest.get("items")):
        rest["items"].pop("discriminator", None)
    if name != "kind" and not _holds_parts(rest):
        rest = {"anyOf": [*rest.get("anyOf", [rest]), _INTERPOLATION]}
    return {**about, **rest}


def _holds_parts(found: dict[str, Any]) -> bool:
    return bool({"$ref", "oneOf"} & set(found)) or any(
        is_mapping(inner) and _holds_parts(inner) for inner in [found.get("items"), *found.get("anyOf", [])]
    )
