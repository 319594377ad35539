"""Descriptions of all sections and keys of a schema, for messages, help and reference pages."""

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
    """A key of a section.

    ``within``: the kinds of the sections around it, with their paths.
    ``default``: plain data, None if ``required``.
    ``kinds``: the sections that the key can hold, by kind; a section without kinds is under "", and a plain value has
    none.
    ``role``: the role of a dialect's key in native run files; ``aliases`` are its other paths from the top.
    ``special``: how a value is read and written if pydantic's types do not describe it.
    ``words``: all values of a key that accepts only certain values.
    """

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
        """Return the validated ``value`` as a file has it. Raises ValueError if a file cannot express it."""
        if self.words and value not in self.words:
            raise ValueError(f"is none of {', '.join(map(repr, self.words))}")
        return self.special.write(value) if self.special else plain(value)

    @property
    def default_kind(self) -> str | None:
        """The kind of a section without ``kind``, None if the kind is required."""
        if self.repeated or not self.kinds:
            return None
        return "" if "" in self.kinds else self.default and self.default.get("kind")

    @property
    def element_type(self) -> str:
        """The `type` of an element of a list of plain values."""
        return self.type.removeprefix("list of ").lstrip("0123456789 ").removesuffix("s")

    def section(self, value: Any) -> Section | None:
        """Return the section that ``value`` is, by its ``kind`` or the default kind, None if it is not a section."""
        if not is_mapping(value):
            return None
        kind = "" if "" in self.kinds else value.get("kind", self.default_kind)
        return self.kinds.get(kind) if isinstance(kind, str) else None


@dataclass(frozen=True)
class Section:
    """A section of a run file, with its keys in order. ``within`` are the paths and kinds of the sections with kinds
    around it, including itself."""

    path: str
    kind: str
    within: tuple[tuple[str, str], ...]
    summary: str
    keys: tuple[KeyInfo, ...]
    model: type[ConfigSection]
    translates: bool = False
    """True for a section of a dialect's file."""
    shorthand: str = ""
    """The key whose value can be given in place of the section."""
    nestings: tuple[str, ...] = ()
    """Other paths at which files have the keys of the section."""

    def key(self, name: str) -> KeyInfo | None:
        """Return the key ``name`` of this section, None if it has no such key."""
        return next((key for key in self.keys if key.name == name), None)


@cache
def run_file() -> Section:
    """Return the top of native run files."""
    return section_of(RunConfig)


@cache
def section_of(schema: type[ConfigSection]) -> Section:
    """Return the top of the files of ``schema``: native run files, or a dialect's."""
    return _section(schema, "", ())


def walk(section: Section | None = None) -> Iterator[KeyInfo]:
    """Yield all keys below ``section`` (the top of run files if None), once for each kind that has them."""
    for key in (section or run_file()).keys:
        yield key
        for inner in key.kinds.values():
            yield from walk(inner)


@cache
def default_kinds() -> dict[KeyPath, str]:
    """Return the default kind of each section, by its path."""
    kinds: dict[KeyPath, str] = {}

    def visit(section: Section, path: KeyPath) -> None:
        for key in section.keys:
            for inner in key.kinds.values() if not key.repeated else ():
                if key.default_kind:
                    kinds[(*path, key.name)] = key.default_kind
                visit(inner, (*path, key.name))

    visit(run_file(), ())
    return kinds


def with_defaults(values: dict[str, Any], section: Section | None = None) -> dict[str, Any]:
    """Return ``values`` of a section with the defaults of missing keys; unknown keys are kept."""
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
    """Return the kind of a config class, "" for one without ``kind``."""
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
    only = kinds.get("") if not field.description else None  # a section that always exists, with its defaults
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
    annotations = [a for _, metadata in alternatives(field.annotation, field.metadata) for a in metadata]
    return next((annotation for annotation in annotations if isinstance(annotation, Value)), None)


def _all_words(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values of a key that accepts only certain values, without null; () for any other key."""
    accepted = [member for member, _ in alternatives(field.annotation) if member is not types.NoneType]
    if any(get_origin(member) is not Literal for member in accepted):
        return ()
    return tuple(word for member in accepted for word in get_args(member))


def _aliases(name: str, around: str, aliases: tuple[str, ...], nestings: tuple[str, ...]) -> tuple[str, ...]:
    """Return all other paths of the key ``name`` of the section ``around``, which is also at ``nestings``."""
    aliases = tuple(f"{alias}{name}" if alias.endswith(".") else alias for alias in aliases)
    spellings = [alias for alias in aliases if "." not in alias]
    beside = [f"{around}.{spelling}" for spelling in spellings] + [
        f"{other}.{spelling}" for other in nestings for spelling in (name, *spellings)
    ]
    return tuple(path.removeprefix(".") for path in (*beside, *(alias for alias in aliases if "." in alias)))


def plain(value: Any) -> Any:
    """Return ``value`` of the schema as plain data: sections as mappings with the kind first, tuples as lists."""
    if isinstance(value, ConfigSection):
        names = sorted(type(value).model_fields, key=lambda name: name != "kind")
        return {name: plain(getattr(value, name)) for name in names}
    return [plain(inner) for inner in value] if is_sequence(value) else value


def _parts(annotation: Any) -> list[type[ConfigSection]]:
    """Return the config classes in ``annotation``, also those of a list's elements."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        return [annotation]
    origin = get_origin(annotation)
    inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    return [] if origin is Literal else [part for member in inner for part in _parts(member)]


def _given(annotation: Any) -> Any:
    """Return ``annotation`` without null, which in a dialect means that a key is not given."""
    accepted = tuple(member for member in get_args(annotation) if member is not types.NoneType)
    return Union[accepted] if get_origin(annotation) in (Union, types.UnionType) else annotation  # noqa: UP007


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return ``annotation`` in words."""
    special = next((item for item in metadata if isinstance(item, Value)), None)
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
        return _choice([word for member in inner for word in _words(member).replace(" or ", ", ").split(", ")])
    if origin is dict:
        return "mapping"
    if origin is tuple:
        element = _words(inner[0])
        return f"list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}{_PLURALS.get(element, element)}"
    assert issubclass(annotation, ConfigSection), annotation
    return "section"


def _choice(words: list[str]) -> str:
    """Return ``words`` as a choice, "a, b or c", with an article before a list."""
    words = list(dict.fromkeys(words))
    if not words[1:]:
        return words[0]
    words = [f"a {word}" if word.startswith("list") else word for word in words]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _constraints(field: FieldInfo) -> tuple[str, ...]:
    bounds = _bounds(field.metadata)
    if get_origin(field.annotation) in (Union, types.UnionType):  # of a value that may also be null
        bounds += [bound for member in get_args(field.annotation) for bound in _nested_bounds(member)]
    if get_origin(field.annotation) is tuple:
        bounds += [f"each {bound}" for bound in _nested_bounds(get_args(field.annotation)[0])]
    return tuple(bounds)


def _nested_bounds(annotation: Any) -> list[str]:
    """Return the bounds of an Annotated type inside another."""
    inner = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [bound for item in inner for bound in _bounds(getattr(item, "metadata", [item]))]


def _bounds(metadata: list[Any]) -> list[str]:
    bounds = [
        f"{words} {getattr(item, bound):g}"
        for item in metadata
        for bound, words in _BOUNDS.items()
        if hasattr(item, bound)
    ]
    bounds += ["not empty" for item in metadata if getattr(item, "min_length", None)]
    patterns = [item.pattern for item in metadata if getattr(item, "pattern", None)]
    return bounds + [_PATTERNS.get(pattern, f"of the form {pattern}") for pattern in patterns]
