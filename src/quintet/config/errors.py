"""Pydantic's validation errors as problems for a user: file, line, key, what is wrong and what to do."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from quintet.config.describe import KeyInfo, Section, section_of, walk
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, lookup, parse, show
from quintet.config.provenance import Problem, Provenance, origin_of, shown
from quintet.config.read import half_character
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection
from quintet.errors import did_you_mean
from quintet.errors import nearest as nearest_name

_MOST_PLACES = 3
_KIND_ERRORS = {"union_tag_invalid", "union_tag_not_found"}
_SECTION_ERRORS = {"model_type", "model_attributes_type", "dict_type"}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


@dataclass(frozen=True)
class _Spot:
    """The schema at a ``path``: the innermost section, the key that holds this section, and the key at the path."""

    path: KeyPath
    section: Section
    holder: KeyInfo | None = None
    key: KeyInfo | None = None


def problems_of(
    error: ValidationError, values: dict[str, Any], provenance: Provenance, schema: type[ConfigSection] = RunConfig
) -> list[Problem]:
    """Return the problems that ``error`` reports about ``values`` of a file of ``schema``, each at the line of its key
    or of the section around the key."""
    top = section_of(schema)
    messages: dict[KeyPath, str] = {}
    missing: dict[KeyPath, str] = {}
    contradictions: list[tuple[KeyPath, str]] = []
    meant: dict[KeyPath, KeyPath] = {}
    other_kinds: set[KeyPath] = set()  # keys of other kinds of their section
    details = list(_details(error, values, top))
    missing_paths = [_spot(detail["loc"], top).path for detail in details if detail["type"] == "missing"]
    for detail in details:
        context = detail.get("ctx", {})
        spot = _spot(detail["loc"], top)
        path, value = spot.path, lookup(values, spot.path)
        if value is ABSENT and path and isinstance(path[-1], int):  # a single value, which is read as a list
            path = path[:-1]
            value = lookup(values, path)
        if detail["type"] == "cross_field":
            contradictions.append((path + (parse(context["key"]) or ()), detail["msg"]))
        elif spot.key is None and path:
            nearest = nearest_name(str(path[-1]), (key.name for key in spot.section.keys))
            needed = [str(lost[-1]) for lost in missing_paths if lost[:-1] == path[:-1]]
            nearest = nearest and _as_near(str(path[-1]), nearest, needed)
            messages[path] = _unknown_key(spot, nearest, top)
            if _kinds_with(spot):
                other_kinds.add(path)
            elif nearest:
                meant[path] = (*path[:-1], nearest)
        elif detail["type"] == "missing":
            missing[path] = _missing(spot)
        elif detail["type"] in _KIND_ERRORS:
            kind = value.get("kind", ABSENT) if is_mapping(value) else ABSENT
            message = _wrong_kind(kind, list(spot.key.kinds) if spot.key else [])
            (missing if kind is ABSENT else messages)[(*path, "kind")] = message
        elif detail["type"] == "too_short" and is_list(value) and len(value) >= context["min_length"]:
            continue  # pydantic counts the valid elements; the others are reported by themselves
        else:
            messages.setdefault(path, _message(detail, spot, value))
    messages |= {path: message for path, message in missing.items() if path not in meant.values()}
    return [
        Problem(origin_of(path, provenance), show(path), message, show(meant[path]) if path in meant else "")
        for path, message in [*messages.items(), *contradictions]
        if path not in other_kinds
        or (*path[:-1], "kind") not in meant.values()  # otherwise they belong to the misspelt kind
    ]


def _details(error: ValidationError, values: dict[str, Any], top: Section) -> Iterator[ErrorDetails]:
    """Yield the details of ``error``, and for a section of an unknown kind those that hold for all kinds."""
    for detail in error.errors(include_url=False):
        yield detail
        spot = _spot(detail["loc"], top)
        section = lookup(values, spot.path)
        if detail["type"] not in _KIND_ERRORS or spot.key is None or not is_mapping(section):
            continue
        by_kind = {kind: _wrong_as(kind, section, spot.key) for kind in spot.key.kinds}
        like = nearest_name(str(section.get("kind")), list(by_kind)) or next(iter(by_kind))
        for name, inner in by_kind[like].items():
            if all(name in wrong for wrong in by_kind.values()):
                yield {**inner, "loc": (*detail["loc"], like, *inner["loc"])}


def _wrong_as(kind: str, values: Mapping[str, Any], key: KeyInfo) -> dict[str, ErrorDetails]:
    """Return the first error of each key of ``values``, validated as the section of ``kind`` that ``key`` can hold."""
    model = key.kinds[kind].model
    try:
        model.model_validate({**values, "kind": kind})
    except ValidationError as error:
        details = [detail for detail in error.errors(include_url=False) if detail["loc"] and detail["loc"][0] in values]
        return {str(detail["loc"][0]): detail for detail in reversed(details) if detail["type"] != "missing"}
    return {}


def _as_near(name: str, nearest: str, needed: Iterable[str]) -> str:
    """Return the name most like ``name``: one of the missing names ``needed`` if it is as similar as ``nearest``."""

    def similarity(other: str) -> float:
        return difflib.SequenceMatcher(None, other, name).ratio()

    return max([*needed, nearest], key=similarity)


def _kinds_with(spot: _Spot) -> list[str]:
    """Return the other kinds of the section at ``spot`` that have its key."""
    name = str(spot.path[-1])
    return [other.kind for other in spot.holder.kinds.values() if other.key(name)] if spot.holder else []


def _spot(location: tuple[int | str, ...], top: Section) -> _Spot:
    """Return the spot of pydantic's ``location``, which also names kinds and branches of unions."""
    spot = _Spot((), top)
    for step in location:
        key = spot.key
        if key is not None and isinstance(step, int) and (key.repeated or not key.kinds):
            spot = replace(spot, path=(*spot.path, step))
            continue
        if key is not None and not key.kinds:
            break  # a branch of a union of plain values
        if key is not None:
            section = key.kinds[str(step)] if len(key.kinds) > 1 else next(iter(key.kinds.values()))
            spot = _Spot(spot.path, section, holder=key)
            if len(key.kinds) > 1:
                continue
        spot = replace(spot, path=(*spot.path, str(step)), key=spot.section.key(str(step)))
    return spot


def _unknown_key(spot: _Spot, nearest: str | None, top: Section) -> str:
    """Return the message on an unknown key; ``nearest`` is the key of its section that may be meant."""
    name, kind = str(spot.path[-1]), spot.section.kind
    if others := _kinds_with(spot):
        return f"{name!r} is not an option of kind {kind!r} (it is one of {', '.join(others)})"
    section, _, rest = name.partition(".")
    if rest and spot.section.key(section):
        return f"unknown key {name!r}; in a file sections are nested: {section}: {{{rest}: …}}"
    known_as = elsewhere(name, misspelt=nearest is None, top=top)
    if nearest:
        return f"unknown key {name!r}{did_you_mean(nearest)}{known_as and f' ({known_as})'}"
    owner = f"kind {kind!r}" if kind else "this section" if spot.holder else "a run file"
    keys = ", ".join(key.name for key in spot.section.keys if not key.role.unsupported)
    return f"unknown key {name!r}; {known_as or f'{owner} has {keys}'}"


def elsewhere(name: str, misspelt: bool, top: Section) -> str:
    """Return where a file has a key ``name``, or, if it is ``misspelt``, one like it; "" if nowhere."""
    paths: dict[str, list[str]] = {}
    for key in walk(top):
        if key.path not in paths.setdefault(key.name, []):
            paths[key.name].append(key.path)
    known = difflib.get_close_matches(name, list(paths), n=1, cutoff=0.8 if misspelt else 1.0)
    if not known or len(paths[known[0]]) > _MOST_PLACES:
        return ""
    verb = "it exists as" if known[0] == name else "did you mean"
    return f"{verb} {' or '.join(paths[known[0]])}{'' if known[0] == name else '?'}"


def _missing(spot: _Spot) -> str:
    assert spot.key is not None, spot.path
    kind, around = spot.section.kind, show(spot.path[:-1])
    if spot.key.name == "kind":
        return _wrong_kind(ABSENT, [kind])
    owner = f"kind {kind!r}" if kind else f"section {around!r}" if around else "a run file"
    return f"is missing, and {owner} needs it: {spot.key.description}"


def not_a_section(value: object) -> str:
    """Return the message on a ``value`` in place of a section."""
    return f"must be a section of keys and values, found {shown(value)}"


def _message(detail: ErrorDetails, spot: _Spot, value: Any) -> str:
    """Return the message on a wrong value of a known key."""
    key = spot.key
    assert key is not None, spot.path
    if detail["type"] in _SECTION_ERRORS:
        if value is None:
            return "is empty; give it keys, or remove it to get its defaults"
        return not_a_section(value)
    if detail["type"] == "value_error":
        return f"{detail.get('ctx', {})['error']}, found {shown(value)}"
    if detail["type"] == "literal_error" and key.name == "kind":
        return _wrong_kind(value, [spot.section.kind])
    if detail["type"] == "literal_error":
        nearest = nearest_name(str(value), key.type.replace(" or ", ", ").split(", "))
        return f"must be {key.type}, found {shown(value)}{did_you_mean(nearest, quoted=False)}"
    return _wrong_value(detail, key, spot.path, value)


def _wrong_kind(value: Any, kinds: list[str]) -> str:
    known = f"the kinds are {', '.join(kinds)}" if len(kinds) > 1 else f"the only kind is {kinds[0]}"
    if value is ABSENT:
        return f"is missing; {known}"
    return f"unknown kind {shown(value)}{did_you_mean(nearest_name(str(value), kinds)) or ';'} {known}"


def _wrong_value(detail: ErrorDetails, key: KeyInfo, path: KeyPath, value: Any) -> str:
    kind, context, found = detail["type"], detail.get("ctx", {}), f"found {shown(value)}"
    words = key.element_type if isinstance(path[-1], int) else key.type
    unit = (
        f" {key.unit}" if words.startswith("whole number") and key.unit.endswith("s") else ""
    )  # the plural of what is counted
    if kind in _BOUNDS:
        word, limit = _BOUNDS[kind]
        return f"must be {word} {context[limit]:g}{unit}, {found}"
    if kind == "string_pattern_mismatch":
        return f"must be text that is {' and '.join(key.constraints)}, {found}"
    if kind == "string_too_short" or (kind == "too_short" and value in ("", [])):
        return "must not be empty"
    if kind == "string_unicode" and isinstance(value, str) and (problem := half_character(value)) is not None:
        return problem
    if kind == "finite_number":
        return f"must be finite, {found}"
    article = "" if words.startswith(("true", "auto", "text")) else "a "
    if words.startswith("text") and isinstance(value, bool | int | float):
        found += "; put it in quotes"
    if words.startswith("list of") and not is_list(value):
        found += "; put it in [ ]"
    if unit:
        words = words.replace("whole number", f"whole number of{unit}")
    return f"must be {article}{words}, {found}"
