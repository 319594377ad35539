"""A walk over the schema that yields what a person wants to know of each key: for messages, help and reference."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from quintet.config.keypath import KeyPath, is_list, is_mapping, is_sequence
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection, Role, Value, alternatives

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_PATTERNS = {r"^[^/\\]+$": "without / and \\"}
_NO_ROLE = Role()


@dataclass(frozen=True)
class KeyInfo:
    """One key. ``default`` is plain data and None when ``required``; ``kinds`` are the sections that the key may hold,
    by kind (a section that has no kinds is under ""), and is empty for a single value. ``role`` is what a dialect's key
    has to do with the native run file, ``aliases`` its other paths from the top, ``special`` how a value is read and
    written that the field's own rules do not tell, ``words`` all values that there are, where they are counted."""

    name: str
    path: str
    within: tuple[tuple[str, str], ...]
    type: str
    unit: str
    required: bool
    default: Any
    constraints: tuple[str, ...]
    description: str
    repeated: bool
    kinds: dict[str, Section]
    role: Role = _NO_ROLE
    aliases: tuple[str, ...] = ()
    special: Value | None = None
    words: tuple[Any, ...] = ()

    @property
    def accepts(self) -> str:
        """Type and bounds in words."""
        return ", ".join((self.type, *self.constraints))

    def write(self, value: Any) -> Any:
        """``value``, as it was read, as a file has it. Raises ValueError where there is no word for it."""
        if self.words and value not in self.words:
            raise ValueError(f"is none of {', '.join(map(repr, self.words))}")
        return self.special.write(value) if self.special else plain(value)

    @property
    def default_kind(self) -> str | None:
        """The kind of a section that does not say its own; None where it must."""
        if self.repeated or not self.kinds:
            return None
        return "" if "" in self.kinds else self.default and self.default.get("kind")

    @property
    def element_type(self) -> str:
        """`type` of one element of a list of plain values."""
        return self.type.removeprefix("list of ").lstrip("0123456789 ").removesuffix("s")

    def section(self, value: Any) -> Section | None:
        """The section that ``value`` of this key is, by its ``kind`` or by the default's; None when it is none."""
        if not is_mapping(value):
            return None
        kind = "" if "" in self.kinds else value.get("kind", self.default_kind)
        return self.kinds.get(kind) if isinstance(kind, str) else None


@dataclass(frozen=True)
class Section:
    """A part of the run file: its keys in order. ``within`` names the kinds of the sections around it, itself included,
    where there was a choice."""

    path: str
    kind: str
    within: tuple[tuple[str, str], ...]
    summary: str
    keys: tuple[KeyInfo, ...]
    model: type[ConfigSection]
    translates: bool = False
    """True if it is a section of a dialect's file."""
    shorthand: str = ""
    """The key that a value by itself stands for."""
    nestings: tuple[str, ...] = ()
    """Other paths at which files have its keys."""

    def key(self, name: str) -> KeyInfo | None:
        """The key ``name`` of this section, None when it has none."""
        return next((key for key in self.keys if key.name == name), None)


@cache
def run_file() -> Section:
    """The whole run file."""
    return section_of(RunConfig)


@cache
def section_of(schema: type[ConfigSection]) -> Section:
    """The whole of a file that is described by ``schema``: that of native run files or of a dialect."""
    return _section(schema, "", ())


def walk(section: Section | None = None) -> Iterator[KeyInfo]:
    """Every key below ``section`` (the run file's top when None), each once for every kind it occurs in."""
    for key in (section or run_file()).keys:
        yield key
        for inner in key.kinds.values():
            yield from walk(inner)


@cache
def default_kinds() -> dict[KeyPath, str]:
    """The kind that each section of the top and of what is inside has when it does not say one."""
    found: dict[KeyPath, str] = {}

    def visit(section: Section, path: KeyPath) -> None:
        for key in section.keys:
            for inner in key.kinds.values() if not key.repeated else ():
                if key.default_kind:
                    found[(*path, key.name)] = key.default_kind
                visit(inner, (*path, key.name))

    visit(run_file(), ())
    return found


def with_defaults(values: dict[str, Any], section: Section | None = None) -> dict[str, Any]:
    """``values`` of a section together with the defaults of what they leave out; what is unknown stays as it is."""
    section = section or run_file()
    full = {key.name: key.default for key in section.keys if not key.required}
    for name, value in values.items():
        key = section.key(name)
        if key is None:
            full[name] = value
        elif is_list(value):
            full[name] = [_filled(element, key) for element in value]
        else:
            full[name] = _filled(value, key)
    return full


def _filled(value: Any, key: KeyInfo) -> Any:
    section = key.section(value)
    return value if section is None else with_defaults(value, section)


def kind_of(part: type[ConfigSection]) -> str:
    """The kind that a part of the schema stands for, "" for a part that has no kinds."""
    field = part.model_fields.get("kind")
    return "" if field is None else str(get_args(field.annotation)[0])


def _section(part: type[ConfigSection], path: str, within: tuple[tuple[str, str], ...]) -> Section:
    keys = [_key(name, field, path, within, part) for name, field in part.model_fields.items()]
    keys.sort(key=lambda key: key.name != "kind")
    return Section(
        path,
        kind_of(part),
        within,
        " ".join((part.__doc__ or "").split()),
        tuple(keys),
        part,
        part.translates,
        part.shorthand,
        part.nestings,
    )


def _key(
    name: str, field: FieldInfo, around: str, within: tuple[tuple[str, str], ...], owner: type[ConfigSection]
) -> KeyInfo:
    path = f"{around}.{name}".removeprefix(".")
    repeated = get_origin(field.annotation) is tuple
    parts = _parts(field.annotation)
    path += "[]" if repeated and parts else ""
    extra = field.json_schema_extra if is_mapping(field.json_schema_extra) else {}
    kinds = {
        kind_of(part): _section(part, path, (*within, (path, kind_of(part))) if len(parts) > 1 else within)
        for part in parts
    }
    role = extra.get("role", _NO_ROLE)
    assert isinstance(role, Role)
    role = replace(role, documented=owner.documented) if role.documented is None else role
    only = kinds.get("") if not field.description else None  # a section that is there in every file, if only empty
    required = field.is_required() and (only is None or any(key.required for key in only.keys))
    return KeyInfo(
        name=name,
        path=path,
        within=within,
        type=_words(_given(field.annotation) if owner.translates else field.annotation, field.metadata),
        unit=str(extra.get("unit", "")),
        required=required,
        default=None if field.is_required() else plain(field.default),
        constraints=_constraints(field),
        description=field.description or (only.summary if only else ""),
        repeated=repeated and bool(parts),
        kinds=kinds,
        role=role,
        aliases=() if parts else _aliases(name, around, role.aliases, owner.nestings),
        special=_special(field),
        words=_all_words(field),
    )


def _special(field: FieldInfo) -> Value | None:
    found = [one for _, metadata in alternatives(field.annotation, field.metadata) for one in metadata]
    return next((one for one in found if isinstance(one, Value)), None)


def _all_words(field: FieldInfo) -> tuple[Any, ...]:
    """The values of a key that only takes certain words, null left out."""
    found = [one for one, _ in alternatives(field.annotation) if one is not types.NoneType]
    return (
        tuple(word for one in found for word in get_args(one))
        if all(get_origin(one) is Literal for one in found)
        else ()
    )


def _aliases(name: str, around: str, aliases: tuple[str, ...], nestings: tuple[str, ...]) -> tuple[str, ...]:
    """Every other path of a key ``name`` of the section ``around``, itself at ``nestings``, too."""
    aliases = tuple(f"{alias}{name}" if alias.endswith(".") else alias for alias in aliases)
    spellings = [alias for alias in aliases if "." not in alias]
    beside = [f"{around}.{one}" for one in spellings] + [
        f"{other}.{one}" for other in nestings for one in (name, *spellings)
    ]
    return tuple(path.removeprefix(".") for path in (*beside, *(alias for alias in aliases if "." in alias)))


def plain(value: Any) -> Any:
    """``value`` of the schema as YAML would hold it: parts as mappings with the kind first, tuples as lists."""
    if isinstance(value, ConfigSection):
        names = sorted(type(value).model_fields, key=lambda name: name != "kind")
        return {name: plain(getattr(value, name)) for name in names}
    return [plain(inner) for inner in value] if is_sequence(value) else value


def _parts(annotation: Any) -> list[type[ConfigSection]]:
    """The parts that ``annotation`` allows, also as elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        return [annotation]
    origin = get_origin(annotation)
    inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return [] if origin is Literal else [part for one in inner for part in _parts(one)]


def _given(annotation: Any) -> Any:
    """``annotation`` without null, which in a dialect says that a key is not given."""
    accepted = tuple(one for one in get_args(annotation) if one is not types.NoneType)
    return Union[accepted] if get_origin(annotation) in (Union, types.UnionType) else annotation  # noqa: UP007


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """``annotation`` in plain words."""
    special = next((one for one in metadata if isinstance(one, Value)), None)
    if special is not None:
        return special.words
    if annotation is Any:
        return "anything"
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0], inner[1:])
    if origin is Literal:
        return _choice([str(value) for value in inner])
    if origin in (Union, types.UnionType):
        return _choice([word for one in inner for word in _words(one).replace(" or ", ", ").split(", ")])
    if origin is dict:
        return "mapping"
    if origin is tuple:
        element = _words(inner[0])
        return f"list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}{_PLURALS.get(element, element)}"
    assert issubclass(annotation, ConfigSection), annotation
    return "section"


def _choice(words: list[str]) -> str:
    """``words`` as a choice: "a, b or c". What is a list among them has an article."""
    words = list(dict.fromkeys(words))
    if not words[1:]:
        return words[0]
    words = [f"a {word}" if word.startswith("list") else word for word in words]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _constraints(field: FieldInfo) -> tuple[str, ...]:
    found = _bounds(field.metadata)
    if get_origin(field.annotation) in (Union, types.UnionType):  # bounds of what may also be null
        found += [bound for one in get_args(field.annotation) for bound in _nested_bounds(one)]
    if get_origin(field.annotation) is tuple:
        for element in get_args(field.annotation)[:1]:
            found += [f"each {bound}" for bound in _nested_bounds(element)]
    return tuple(found)


def _nested_bounds(annotation: Any) -> list[str]:
    """The bounds of an Annotated type inside another."""
    inner = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [bound for one in inner for bound in _bounds(getattr(one, "metadata", [one]))]


def _bounds(metadata: list[Any]) -> list[str]:
    found = [
        f"{words} {getattr(one, bound):g}"
        for one in metadata
        for bound, words in _BOUNDS.items()
        if hasattr(one, bound)
    ]
    found += ["not empty" for one in metadata if getattr(one, "min_length", None)]
    patterns = [one.pattern for one in metadata if getattr(one, "pattern", None)]
    return found + [_PATTERNS.get(pattern, f"of the form {pattern}") for pattern in patterns]
