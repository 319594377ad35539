"""What every part of a run file has in common: frozen, typed, nothing unknown accepted, every key described."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


def key(default: Any, description: str, *, unit: str = "", **constraints: Any) -> Any:
    """One key of the run file: its default (``...`` when it must be given), its meaning and its unit.

    ``constraints`` are pydantic's (``ge``, ``gt``, ``le``, ``lt``, ``min_length`` …). The unit of a number says what is
    counted or measured; what is not a number has the unit that its type implies.
    """
    return Field(default, description=description, json_schema_extra={"unit": unit} if unit else None, **constraints)


def config_error(key_path: str, message: str) -> PydanticCustomError:
    """An error about several keys, reported at ``key_path`` (relative to the part that raises it)."""
    return PydanticCustomError("cross_field", "{message}", {"message": message, "key": key_path})


class ConfigSection(BaseModel):
    """Base of every section of a run file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_plainly(cls, values: Any) -> Any:
        """A section without ``kind`` has the kind of its default; true and false are never taken for numbers."""
        if not isinstance(values, dict):
            return values
        return {
            name: cls._plain(cls.model_fields[name], value) if name in cls.model_fields else value
            for name, value in values.items()
        }

    @staticmethod
    def _plain(field: FieldInfo, value: Any) -> Any:
        default_kind = getattr(field.default, "kind", None)
        if default_kind is not None and isinstance(value, dict) and "kind" not in value:
            return {"kind": default_kind, **value}
        accepted = get_args(field.annotation) or (field.annotation,)
        if not {int, float} & set(accepted) or {str, bool} & set(accepted):
            return value
        if isinstance(value, bool):
            return str(value).lower()  # text that is no number, so that pydantic refuses it at this very key
        return number_in(value)


def number_in(value: Any) -> Any:
    """The number that ``value`` spells if it is a text that spells one ("2e-5", "1_000", "1e3"), else ``value``."""
    if not isinstance(value, str):
        return value
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return value
