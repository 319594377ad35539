"""The base class of the sections of a run file, and the declaration of their keys.

A section is frozen and typed, refuses unknown keys, and describes each of its keys.
"""

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
"""Errors about several keys, made by `config_error`."""

_CROSS_FIELD = "cross_field"
_deferred = ContextVar("sections leave their errors about several keys to the run file", default=False)


@dataclass(frozen=True)
class Role:
    """The role of a dialect's key in the native run file.

    ``to``: the native key that gets the value as it is; no other key sets it.
    ``affects``: the native keys that a rule of the dialect computes from it.
    ``aliases``: other spellings. One without a point is in the same section. One with a point is a path from the top of
    the file (``.name`` is a key at the top; ``section.`` is the same name in that section).
    ``documented``: True if the framework's document has the key, False if only its files do, None as for the section.
    ``no_effect``: why the key changes nothing in Quintet.
    ``unsupported``: why the key is refused; ``noop_values`` are accepted, because they ask for nothing.
    ``null``: the value that null stands for; None if null means that the key is not given.
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
        """The native keys that the key sets or affects."""
        return ((self.to,) if self.to else ()) + tuple(path for path in self.affects if path != self.to)


_ROLES = {role_field.name for role_field in fields(Role)}


def key(default: Any, description: str, *, unit: str = "", **more: Any) -> Any:
    """Declare a key of a run file by its default (``...`` if it is required), its description and its unit.

    ``more`` are pydantic's constraints (``ge``, ``gt``, ``le``, ``lt``, ``min_length`` …), and in a dialect the fields
    of `Role`; for its tuples a single element will do. Only numbers need a unit.
    """
    role = {name: more.pop(name) for name in _ROLES & more.keys()}
    for name in {"affects", "aliases", "noop_values"} & role.keys():
        role[name] = role[name] if isinstance(role[name], tuple) else (role[name],)
    extra: dict[str, Any] = ({"unit": unit} if unit else {}) | ({"role": Role(**role)} if role else {})
    return Field(default, description=description, json_schema_extra=extra or None, **more)


def config_error(key_path: str, message: str) -> PydanticCustomError:
    """Return an error about several keys, reported at ``key_path``, which is relative to the section that raises it."""
    return PydanticCustomError(_CROSS_FIELD, "{message}", {"message": message, "key": key_path})


@contextmanager
def deferred_errors() -> Generator[None]:
    """Keep sections from raising their `errors` within the context, so that the caller can collect all of them."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def raise_errors(title: str, errors: Iterable[PydanticCustomError], others: Iterable[InitErrorDetails] = ()) -> None:
    """Raise one ValidationError with all ``errors`` and ``others``, if there are any."""
    lines = [*others, *(InitErrorDetails(type=error, loc=(), input=None) for error in errors)]
    if lines:
        raise ValidationError.from_exception_data(title, lines)


def init_error(detail: ErrorDetails) -> InitErrorDetails:
    """Return the error that pydantic reported as ``detail`` in the form in which it can be raised."""
    context = detail.get("ctx", {})
    kind = config_error(context["key"], context["message"]) if detail["type"] == _CROSS_FIELD else detail["type"]
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


class ConfigSection(BaseModel):
    """Base of every section of a run file."""

    nestings: ClassVar[tuple[str, ...]] = ()
    """Other paths at which a dialect's files have the keys of this section; "" is the top."""
    shorthand: ClassVar[str] = ""
    """The key of a dialect's section whose value can be given in place of the section: ``fp16: true``."""
    documented: ClassVar[bool] = True
    """True if the dialect's document has the keys whose role does not define it."""
    translates: ClassVar[bool] = False
    """True for the sections of dialects, False for those of native run files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_plainly(cls, values: Any) -> Any:
        """Add the default kind to a section without ``kind``, and convert texts that spell numbers."""
        if not is_mapping(values):
            return values
        return {
            name: cls._plain(cls.model_fields[name], value) if name in cls.model_fields else value
            for name, value in values.items()
        }

    def errors(self) -> ConfigErrors:
        """Yield an error for each contradiction between keys of this section."""
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
        lists = [accepted for accepted, _ in alternatives(field.annotation) if get_origin(accepted) is tuple]
        element = get_args(lists[0])[0] if lists else None
        if element is not None and is_list(value):
            return [_number(element, inner) for inner in value]
        return _number(field.annotation, value)


def alternatives(annotation: Any, metadata: Iterable[Any] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the types of which ``annotation`` is a union, each with the metadata of its Annotated."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return alternatives(inner[0], (*metadata, *inner[1:]))
    if get_origin(annotation) in (Union, UnionType):
        return [accepted for member in inner for accepted in alternatives(member, metadata)]
    return [(annotation, tuple(metadata))]


def _number(annotation: Any, value: Any) -> Any:
    """Return the number that ``value`` spells if ``annotation`` accepts numbers and no texts, otherwise ``value``."""
    accepted = [member for member, _ in alternatives(annotation)]
    if not (int in accepted or float in accepted) or str in accepted or bool in accepted:
        return value
    if isinstance(value, bool):
        return str(value).lower()  # a text, so that pydantic refuses it and does not read it as 0 or 1
    return number_in(value)


_LONGEST_NUMBER = 100  # characters


def number_in(value: Any) -> Any:
    """Return the number that the text ``value`` spells, or ``value`` if it is not such a text.

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
    """Annotation of a key that accepts a second form of its values: ``read`` turns it into the first form, and ``json``
    makes the JSON Schema of both from that of the first."""

    read: Callable[[Any], Any]
    json: Callable[[dict[str, Any]], dict[str, Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return self.json(handler(schema))


@dataclass(frozen=True, eq=False)
class Value:
    """Annotation of a key whose values pydantic's types do not describe.

    ``words`` describe the values that are accepted. ``read`` converts a value of a file and raises ValueError with what
    is expected; ``write`` is its inverse and raises ValueError for what a file cannot express. ``json`` is the JSON
    Schema. ``why_not`` returns why a value that the framework has is not accepted, or None.

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
