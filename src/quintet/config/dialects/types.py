"""Types of the values of dialects' keys: pydantic's with the usual bounds, and words with a meaning."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quintet.config.keypath import is_sequence
from quintet.config.section import Before, Value, number_in
from quintet.errors import did_you_mean, nearest

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""A part that is never all, such as the decay of an average."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Arguments = dict[str, Any]
"""A section with the keys of another library, which are passed on by name."""
Listed = Before(
    lambda value: value if is_sequence(value) else [value],
    lambda usual: {"anyOf": [usual, usual.get("items", {})]},
)
"""On a list: a single value is a list of one."""
FalseIsZero = Before(
    lambda value: {False: 0, True: "true"}[value] if isinstance(value, bool) else value,
    lambda usual: {"anyOf": [usual, {"const": False}]},
)
"""On a number: false is 0, and true is refused."""


def one_of(
    *words: str, by: Mapping[str, Any] | None = None, any_case: bool = False, why: Mapping[str, str] | None = None
) -> Value:
    """Build the type of ``words``, or of the words of ``by``, which are read as its values.

    ``why`` has reasons for refusing some other words.
    """
    meanings = dict(by or {word: word for word in words})
    lower = {word.lower(): word for word in meanings}

    def why_not(value: Any) -> str | None:
        return why.get(value.lower() if any_case else value) if why and isinstance(value, str) else None

    def read(value: Any) -> Any:
        word = lower.get(value.lower()) if any_case and isinstance(value, str) else value
        if isinstance(word, str) and word in meanings:
            return meanings[word]
        message = f"must be one of {', '.join(meanings)}"
        if reason := why_not(value):
            raise ValueError(f"{message}; {value!r} {reason}")
        raise ValueError(message + did_you_mean(nearest(str(value), meanings)))

    def write(value: Any) -> str:
        for word, meaning in meanings.items():
            if meaning == value and type(meaning) is type(value):
                return word
        raise ValueError(f"is none of {', '.join(map(repr, meanings.values()))}")

    *first, last = meanings
    spellings = [*meanings, *map(str.lower, meanings), *map(str.upper, meanings)] if any_case else meanings
    description = f"{', '.join(first)} or {last}" if first else last
    return Value(description, read, write, {"enum": list(dict.fromkeys(spellings))}, why_not)


_OTHER_GPUS = {f"cuda:{gpu}": f"is chosen by CUDA_VISIBLE_DEVICES={gpu} with device: cuda" for gpu in range(1, 64)}
Device = Annotated[str, one_of(by={"cuda": "cuda", "cuda:0": "cuda", "cpu": "cpu", "mps": "mps"}, why=_OTHER_GPUS)]
Precision = Annotated[str, one_of(by={"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"})]


def switch(on: Any, off: Any) -> Value:
    """Build the type of a switch that is read as ``on`` if it is true and as ``off`` if it is false."""

    def read(value: Any) -> Any:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return on if value else off

    def write(value: Any) -> bool:
        if value not in (on, off):
            raise ValueError(f"is neither {on!r} nor {off!r}")
        return value == on

    return Value("true or false", read, write, {"type": "boolean"})


def finite(value: Any, expected: str) -> int | float:
    """Return the number that ``value`` is or spells. Raises ValueError, with the ``expected`` in words, if it is none,
    infinite or NaN."""
    number = number_in(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"must be {expected}")
    if not math.isfinite(number):
        raise ValueError(f"must be {expected} that is finite")
    return number


def duration(minimum: int = 1) -> Value:
    """Build the type of a number of steps or, with a point, a fraction of all steps: 1 is one step, 1.0 all steps."""

    def read(value: Any) -> int | float:
        number = finite(value, "a whole number of steps, or a fraction of all steps up to 1.0")
        if isinstance(number, float) and number > 1:
            if not number.is_integer():
                raise ValueError("must be a whole number")
            number = int(number)
        if number < (minimum if isinstance(number, int) else 0) or number == 0:
            raise ValueError(f"must be at least {minimum} step, or a fraction above 0")
        return number

    return Value("whole number of steps, or fraction of all", read, json={"type": "number"})
