"""The base of every part of a run file: frozen, typed, nothing unknown accepted, every key described."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function, no_info_plain_validator_function

from quintet.config.keypath import is_list, is_mapping

ConfigErrors = Iterator[PydanticCustomError]
"""Errors about several keys, as `config_error` makes them."""

_CROSS_FIELD = "cross_field"
_deferred = ContextVar("sections leave their errors about several keys to the run file", default=False)


@dataclass(frozen=True)
class Role:
    """The role of a dialect's key in the native run file.

    ``to``: the native key that gets the value as it is; no other key sets it.
    ``affects``: the native keys that a rule of the dialect derives from it.
    ``aliases``: other spellings. Without a point: in the same section. With a point: a path from the top of the file
    (``.name`` for a key at the top; ``section.`` for the same name in that section).
    ``documented``: True if the framework's document has the key, False if only its files have it; None: as the section.
    ``no_effect``: the reason why it changes nothing here.
    ``unsupported``: the reason why it is refused; ``noop_values`` are accepted all the same, as they ask for nothing.
    ``null``: the value that null stands for; None: null means that the key is not given.
    """

    to: str = ""
    affects: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    documented: bool | None = None
    no_effect: str = ""
    unsupported: str = ""
    noop_values: tuple[Any, ...] = ()
    null: Any = None

    @property
    def native(self) -> tuple[str, ...]:
        """The native keys that the key sets or has a say in."""
        return ((self.to,) if self.to else ()) + tuple(path for path in self.affects if path != self.to)


_ROLES = {one.name for one in fields(Role)}


def key(default: Any, description: str, *, unit: str = "", **more: Any) -> Any:
    """One key of a run file: its default (``...`` when it must be given), its meaning and its unit.

    ``more`` are pydantic's constraints (``ge``, ``gt``, ``le``, ``lt``, ``min_length`` …), and in a dialect the fields
    of `Role`, of which those that are tuples may be a single element. The unit of a number says what is counted or
    measured; what is not a number has the unit that its type implies.
    """
    role = {name: more.pop(name) for name in _ROLES & more.keys()}
    for name in {"affects", "aliases", "noop_values"} & role.keys():
        role[name] = role[name] if isinstance(role[name], tuple) else (role[name],)
    extra: dict[str, Any] = ({"unit": unit} if unit else {}) | ({"role": Role(**role)} if role else {})
    return Field(default, description=description, json_schema_extra=extra or None, **more)


def config_error(key_path: str, message: str) -> PydanticCustomError:
    """An error about several keys, reported at ``key_path`` (relative to the part that raises it)."""
    return PydanticCustomError(_CROSS_FIELD, "{message}", {"message": message, "key": key_path})


@contextmanager
def deferred_errors() -> Generator[None]:
    """Within, sections do not raise their `errors`: whoever validates them collects these, so that all are told."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def raise_errors(title: str, errors: Iterable[PydanticCustomError], others: Iterable[InitErrorDetails] = ()) -> None:
    """Raise one ValidationError with the ``others`` and all ``errors``, if there are any."""
    lines = [*others, *(InitErrorDetails(type=error, loc=(), input=None) for error in errors)]
    if lines:
        raise ValidationError.from_exception_data(title, lines)


def again(detail: ErrorDetails) -> InitErrorDetails:
    """An error that pydantic reported, to be raised once more."""
    context = detail.get("ctx", {})
    kind = config_error(context["key"], context["message"]) if detail["type"] == _CROSS_FIELD else detail["type"]
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


class ConfigSection(BaseModel):
    """Base of every section of a run file."""

    nestings: ClassVar[tuple[str, ...]] = ()
    """Other paths at which files of a dialect have the keys of this section; "" is the top."""
    shorthand: ClassVar[str] = ""
    """The key that a value by itself stands for where a dialect has this section: ``fp16: true``."""
    documented: ClassVar[bool] = True
    """True if the document of a dialect has the keys that do not say so themselves."""
    translates: ClassVar[bool] = False
    """True if it is of a dialect, and not of native run files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_plainly(cls, values: Any) -> Any:
        """A section without ``kind`` has the kind of its default; true and false are never taken for numbers."""
        if not is_mapping(values):
            return values
        return {
            name: cls._plain(cls.model_fields[name], value) if name in cls.model_fields else value
            for name, value in values.items()
        }

    def errors(self) -> ConfigErrors:
        """Yield each contradiction between keys of this section."""
        return iter(())

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if not _deferred.get():
            raise_errors(type(self).__name__, self.errors())
        return self

    @classmethod
    def _plain(cls, field: FieldInfo, value: Any) -> Any:
        default_kind = getattr(field.default, "kind", None)
        if default_kind is not None and is_mapping(value) and "kind" not in value:
            return {"kind": default_kind, **value}
        lists = [one for one, _ in alternatives(field.annotation) if get_origin(one) is tuple]
        element = get_args(lists[0])[0] if lists else None
        if element is not None and is_list(value):
            return [_number(element, inner) for inner in value]
        return _number(field.annotation, value)


def alternatives(annotation: Any, metadata: Iterable[Any] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """The types that ``annotation`` of a key allows, each with the metadata of its Annotated."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return alternatives(inner[0], (*metadata, *inner[1:]))
    if get_origin(annotation) in (Union, UnionType):
        return [found for one in inner for found in alternatives(one, metadata)]
    return [(annotation, tuple(metadata))]


def _number(annotation: Any, value: Any) -> Any:
    """The number that ``value`` spells where ``annotation`` asks for one."""
    accepted = [one for one, _ in alternatives(annotation)]
    if not (int in accepted or float in accepted) or str in accepted or bool in accepted:
        return value
    if isinstance(value, bool):
        return str(value).lower()  # text that is no number, so that pydantic refuses it at this very key
    return number_in(value)


_LONGEST_NUMBER = 100  # characters


def number_in(value: Any) -> Any:
    """The number that ``value`` spells if it is a text that spells one, otherwise ``value``.

    >>> number_in("2e-5"), number_in("1_000"), number_in("fast")
    (2e-05, 1000, 'fast')
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        return value
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return value


@dataclass(frozen=True)
class Before:
    """Annotation of a key that also takes another form of its values: how that is turned into the usual one, and the
    JSON Schema of both, from that of the usual one."""

    read: Callable[[Any], Any]
    json: Callable[[dict[str, Any]], dict[str, Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return self.json(handler(schema))


@dataclass(frozen=True, eq=False)
class Value:
    """Annotation of a key whose values pydantic's types do not describe: in words what is accepted, how one is read,
    which raises ValueError saying what is expected, how what was read is written in a file, which raises ValueError
    where there is no word for it, its JSON Schema, and why a value that is meant to be there is not accepted.

        activation: Annotated[str, one_of({"swish": "silu", "relu": "relu"})] = key("relu", "…")
    """

    words: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    json: Mapping[str, Any] = field(default_factory=dict[str, Any])
    why_not: Callable[[Any], str | None] = lambda value: None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.json)
