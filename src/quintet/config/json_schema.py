"""JSON Schemas of run files, for completion and checks in an editor."""

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
    "description": "one or several run files to start from, relative to this file, whose own values win",
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}],
}
_ABOUT = ("description", "default", "unit")


def run_file_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a run file as it is written: a default kind may be omitted, ``${…}``
    may stand for each plain value, and a file that ``extends`` others may omit required keys."""
    schema = _schema(RunConfig, "Quintet run file")
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = _required(run_file().keys)
    return schema


def dialect_schema(dialect: Dialect) -> dict[str, Any]:
    """Return the JSON Schema of a file of ``dialect`` as it is written: aliases and other nestings are keys, too,
    `quintet` holds native keys, and nothing is required, because it may come from another file."""
    schema = _schema(dialect.schema, f"{dialect.title} run file")
    schema["properties"] |= {
        EXTENSION: {"type": "object", "description": "native keys, which override the translation"},
        "defaults": {"description": "Hydra's list of files to compose", "type": "array"},
        "hydra": {"description": "settings of Hydra itself", "type": "object"},
    }
    for key in dialect.keys:
        described = _at(schema, schema, pattern(key.path))
        described["description"] += "".join(f"; {word.lower()}: {text}" for word, text in notes_of(key)).replace(
            "`", ""
        )
        if key.role.unsupported:
            described["deprecated"] = True
        if {"type": "null"} not in described["anyOf"]:
            described["anyOf"].append({"type": "null"})
        for alias in key.aliases:
            *around, name = pattern(alias)
            _properties(schema, tuple(around)).setdefault(name, described)
    shorthands = dialect.shorthands | {steps: "" for steps in dialect.own_sections if steps[-1:] == ("[]",)}
    for steps, shorthand in shorthands.items():
        _allow_shorthand(schema, steps, shorthand)
    return schema


def _allow_shorthand(schema: dict[str, Any], steps: tuple[str, ...], shorthand: str) -> None:
    """Let the section at ``steps`` also be the value of its key ``shorthand``, and a list of sections a single one."""
    *around, name = steps[:-1] if steps[-1] == "[]" else steps
    beside = _properties(schema, tuple(around))
    full = beside[name]
    section = full.get("items", full)
    value = [_at(schema, section, (shorthand,))] if shorthand else []
    beside[name] = {"anyOf": [full, *([section] if section is not full else []), *value]}


def _resolved(schema: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    here = here["anyOf"][0] if "properties" not in here and "$ref" not in here and "anyOf" in here else here
    return schema["$defs"][here["$ref"].rpartition("/")[2]] if "$ref" in here else here


def _at(schema: dict[str, Any], here: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema at ``steps`` inside ``here``, a part of ``schema``."""
    for step in steps:
        here = _resolved(schema, here)
        here = here["items"] if step == "[]" else here["properties"][step]
    return here


def _properties(schema: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    """Return the properties of the section at ``steps``, which is created if there is none."""
    here = schema
    for step in steps:
        here = _resolved(schema, here)
        section: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
        here = here.setdefault("items", section) if step == "[]" else here["properties"].setdefault(step, section)
    return _resolved(schema, here)["properties"]


def _schema(config: type[ConfigSection], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a file of ``config`` in which only sections with kinds require keys, because another
    file may give the others."""
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
    """Return the conditions for a run file that extends no other: the required keys of sections without kinds.

    Sections with kinds have their own required keys in the schema.
    """
    inner = {key.name: _required(key.kinds[""].keys) for key in keys if "" in key.kinds}
    names = [key.name for key in keys if key.required and key.path != "name"]
    properties = {name: conditions for name, conditions in inner.items() if conditions}
    return ({"required": names} if names else {}) | ({"properties": properties} if properties else {})


def _property(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the ``schema`` of a key with its unit in the description, and ``${…}`` allowed for plain values."""
    about = {word: schema[word] for word in _ABOUT if word in schema}
    rest = {word: value for word, value in schema.items() if word not in (*_ABOUT, "title", "discriminator", "role")}
    if "unit" in about:
        about["description"] += f" (unit: {about.pop('unit')})"
    if is_mapping(about.get("default")):
        del about["default"]  # an editor would insert the whole default
    if is_mapping(rest.get("items")):
        rest["items"].pop("discriminator", None)
    if name != "kind" and not _holds_sections(rest):
        rest = {"anyOf": [*rest.get("anyOf", [rest]), _INTERPOLATION]}
    return {**about, **rest}


def _holds_sections(schema: dict[str, Any]) -> bool:
    return bool({"$ref", "oneOf"} & set(schema)) or any(
        is_mapping(inner) and _holds_sections(inner) for inner in [schema.get("items"), *schema.get("anyOf", [])]
    )
