"""Types of the values that keys of dialects have: pydantic's with the usual bounds, and words with a meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quintet.config.keypath import is_sequence
from quintet.config.section import Before, Value, number_in
from quintet.errors import nearest

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""A part that is never all, such as the decay of an average."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Arguments = dict[str, Any]
"""A section whose keys are another library's: they are handed on by name."""
Listed = Before(
    lambda value: value if is_sequence(value) else [value],
    lambda usual: {"anyOf": [usual, usual.get("items", {})]},
)
"""On a list: a value by itself is a list of one."""
FalseIsZero = Before(
    lambda value: {False: 0, True: "true"}[value] if isinstance(value, bool) else value,
    lambda usual: {"anyOf": [usual, {"const": False}]},
)
"""On a number: false stands for 0, and true for none."""


def one_of(
    *words: str, by: Mapping[str, Any] | None = None, any_case: bool = False, why: Mapping[str, str] | None = None
) -> Value:
    """One of ``words``, or of the words of ``by``, each standing for a value; ``why`` says of other words why they are
    refused."""
    known = dict(by or {word: word for word in words})
    lower = {word.lower(): word for word in known}

    def why_not(value: Any) -> str | None:
        return why.get(value.lower() if any_case else value) if why and isinstance(value, str) else None

    def read(value: Any) -> Any:
        found = lower.get(value.lower()) if any_case and isinstance(value, str) else value
        if isinstance(found, str) and found in known:
            return known[found]
        message = f"must be one of {', '.join(known)}"
        reason = why_not(value)
        if reason:
            raise ValueError(f"{message}; {value!r} {reason}")
        like = nearest(str(value), known)
        raise ValueError(message + (f"; did you mean {like!r}?" if like else ""))

    def write(value: Any) -> str:
        for word, meaning in known.items():
            if meaning == value and type(meaning) is type(value):
                return word
        raise ValueError(f"is none of {', '.join(map(repr, known.values()))}")

    *first, last = known
    spelled = [*known, *map(str.lower, known), *map(str.upper, known)] if any_case else known
    told = f"{', '.join(first)} or {last}" if first else last
    return Value(told, read, write, {"enum": list(dict.fromkeys(spelled))}, why_not)


def finite(value: Any, wanted: str) -> int | float:
    """The number that ``value`` is, also as text. Raises ValueError, which says what is ``wanted``, for anything else,
    infinity and NaN among it."""
    found = number_in(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"must be {wanted}")
    if not math.isfinite(found):
        raise ValueError(f"must be {wanted} that is finite")
    return found


def duration(minimum: int = 1) -> Value:
    """A whole number of steps, or a number with a point: a fraction of all steps. 1 is one step, 1.0 all of them."""

    def read(value: Any) -> int | float:
        found = finite(value, "a whole number of steps, or a fraction of all steps up to 1.0")
        if isinstance(found, float) and found > 1:
            if not found.is_integer():
                raise ValueError("must be a whole number")
            found = int(found)
        if found < (minimum if isinstance(found, int) else 0) or found == 0:
            raise ValueError(f"must be at least {minimum} step, or a fraction above 0")
        return found

    return Value("whole number of steps, or fraction of all", read, json={"type": "number"})
