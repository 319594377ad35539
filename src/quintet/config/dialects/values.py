"""How the values of a dialect's keys are read: what is accepted, what it becomes, and how it is written again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quintet.config.section import Value, number_in
from quintet.errors import nearest


def finite(value: Any, wanted: str) -> int | float:
    """The number that ``value`` is, also as text. Raises ValueError, which says what is ``wanted``, for anything else,
    infinity and NaN among it."""
    found = number_in(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"must be {wanted}")
    if not math.isfinite(found):
        raise ValueError(f"must be {wanted} that is finite")
    return found


def whole(minimum: int | None = None) -> Value:
    """Whole numbers, also spelled 1e3."""

    def read(value: Any) -> int:
        found = finite(value, "a whole number")
        if found != int(found):
            raise ValueError("must be a whole number")
        if minimum is not None and found < minimum:
            raise ValueError(f"must be at least {minimum}")
        return int(found)

    return Value("whole number" + ("" if minimum is None else f" from {minimum}"), read)


def number(
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    off: float | None = None,
) -> Value:
    """Numbers, also as text ("2e-5", which YAML 1.1 reads as one), the bounds ``above`` and ``below`` excluded. ``off``
    is what false stands for, if anything."""
    limits = _range(minimum, maximum, above, below)

    def read(value: Any) -> float:
        if value is False and off is not None:
            return off
        found = finite(value, "a number")
        low = (minimum is not None and found < minimum) or (above is not None and found <= above)
        if low or (maximum is not None and found > maximum) or (below is not None and found >= below):
            raise ValueError(f"must be {limits}")
        return float(found)

    return Value(f"number {limits}".strip() + (" (false: 0)" if off == 0 else ""), read)


def _range(minimum: float | None, maximum: float | None, above: float | None, below: float | None) -> str:
    first = "" if minimum is None else f"from {minimum:g}"
    first = first if above is None else f"above {above:g}"
    if below is not None:
        return f"{first} to below {below:g}".strip()
    if maximum is None:
        return first
    return f"{first} to {maximum:g}" if first else f"up to {maximum:g}"


def duration(minimum: int = 1) -> Value:
    """A whole number of steps, or a number with a point: a fraction of all steps. 1 is one step, 1.0 all of them."""

    def read(value: Any) -> int | float:
        found = finite(value, "a whole number of steps, or a fraction of all steps up to 1.0")
        if isinstance(found, float) and found > 1:
            found = whole(minimum).read(found)
        if found < (minimum if isinstance(found, int) else 0) or found == 0:
            raise ValueError(f"must be at least {minimum} step, or a fraction above 0")
        return found

    return Value("whole number of steps, or fraction of all", read)


def flag() -> Value:
    """true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    return Value("true or false", read)


def text() -> Value:
    """Text that is not empty."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError("must be text")
        return value

    return Value("text", read)


def choice(*words: str, by: Mapping[str, Any] | None = None, any_case: bool = False) -> Value:
    """One of ``words``, or of the words of ``by``, each standing for a value."""
    known = dict(by or {word: word for word in words})
    lower = {word.lower(): word for word in known}

    def read(value: Any) -> Any:
        found = lower.get(value.lower()) if any_case and isinstance(value, str) else value
        if not isinstance(found, str) or found not in known:
            like = nearest(str(value), known)
            raise ValueError(f"must be one of {', '.join(known)}" + (f"; did you mean {like!r}?" if like else ""))
        return known[found]

    def write(value: Any) -> str:
        for word, meaning in known.items():
            if meaning == value and type(meaning) is type(value):
                return word
        raise ValueError(f"is none of {', '.join(map(repr, known.values()))}")

    return Value(", ".join(f"`{word}`" for word in known), read, write)


def listed(element: Value, length: int | None = None, *, single: bool = False) -> Value:
    """A list of ``element``, of ``length`` if given; with ``single`` a value by itself is a list of one."""

    def read(value: Any) -> list[Any]:
        found = [value] if single and not isinstance(value, list) else value
        if not isinstance(found, list) or (length is not None and len(found) != length):
            raise ValueError(f"must be a list{'' if length is None else f' of {length}'}")
        return [element.read(one) for one in found]

    return Value(
        f"list of {'' if length is None else f'{length} × '}{element.words}",
        read,
        lambda value: [element.write(one) for one in value],
    )


def either(*values: Value) -> Value:
    """What the first of ``values`` that accepts it makes of it."""

    def read(value: Any) -> Any:
        problems = []
        for one in values:
            try:
                return one.read(value)
            except ValueError as error:
                problems.append(str(error).removeprefix("must be "))
        raise ValueError(f"must be {' or '.join(problems)}")

    return Value(" or ".join(one.words for one in values), read)


def mapping() -> Value:
    """A section whose keys are not the dialect's own: they are handed on by name."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a section of keys and values")
        return {str(name): inner for name, inner in value.items()}

    return Value("section", read)


def anything() -> Value:
    """Any value."""
    return Value("anything", lambda value: value)
