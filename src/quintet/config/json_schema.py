"""The run file as JSON Schema, from which an editor completes and checks while one types."""

from __future__ import annotations

from typing import Any

from quintet.config.describe import KeyInfo, run_file
from quintet.config.schema import RunConfig

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
    schema = RunConfig.model_json_schema()
    parts: dict[str, Any] = schema.pop("$defs")
    for part in [schema, *parts.values()]:
        part.pop("title", None)
        names = sorted(part["properties"], key=lambda name: name != "kind")
        part["properties"] = {name: _property(name, part["properties"][name]) for name in names}
    for part in parts.values():
        if "kind" not in part["properties"]:
            part.pop("required", None)  # another file may give it; `then` below says when it must be here
    schema.pop("required")
    schema["properties"]["extends"] = _EXTENDS
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = _required(run_file().keys)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Quintet run file"}
    return {**head, **schema, "$defs": parts}


def _required(keys: tuple[KeyInfo, ...]) -> dict[str, Any]:
    """What a run file that extends no other must have in its sections without kinds; a section with a kind says itself
    what it requires, for it is given as a whole."""
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
    rest = {word: value for word, value in found.items() if word not in (*_TEXT_ABOUT, "title", "discriminator")}
    if "unit" in about:
        about["description"] += f" (unit: {about.pop('unit')})"
    if isinstance(about.get("default"), dict):
        del about["default"]  # an editor would write all of it into the file
    if isinstance(rest.get("items"), dict):
        rest["items"].pop("discriminator", None)
    if name != "kind" and not _holds_parts(rest):
        rest = {"anyOf": [*rest.get("anyOf", [rest]), _INTERPOLATION]}
    return {**about, **rest}


def _holds_parts(found: dict[str, Any]) -> bool:
    return bool({"$ref", "oneOf"} & set(found)) or any(
        isinstance(inner, dict) and _holds_parts(inner) for inner in [found.get("items"), *found.get("anyOf", [])]
    )
