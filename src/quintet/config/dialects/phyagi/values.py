"""Values that only PhyAGI's files have."""

from __future__ import annotations

import ast
from typing import Any

from quintet.config.dialects.values import Value, choice, duration, finite, whole
from quintet.config.section import number_in

OFF = "off"
"""What a period of 0 or -1 is read as: never."""


def name() -> Value:
    """Text, or a number that stands for it."""

    def read(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError("must be text")
        return str(value)

    return Value("text", read)


def period() -> Value:
    """Steps or a fraction of all steps; 0 and -1 are never."""
    steps = duration()

    def read(value: Any) -> Any:
        found = number_in(value)
        return OFF if not isinstance(found, bool) and found in (0, -1) else steps.read(value)

    return Value(f"{steps.words}; -1: never", read, lambda value: -1 if value == OFF else value)


def split() -> Value:
    """A number of tokens, or with a point a fraction of them."""

    def read(value: Any) -> int | float:
        found = finite(value, wanted := "a number of tokens, or with a point a fraction of them")
        if found < 0:
            raise ValueError(f"must be {wanted}")
        if isinstance(found, float) and found >= 1:
            raise ValueError("must be below 1.0, which would leave nothing to train on; without a point it is tokens")
        return found

    return Value("whole number of tokens, or fraction of them", read)


def bounds() -> Value:
    """The first and the last of a range, null where it has no end."""
    one = whole(0)

    def read(value: Any) -> tuple[int | None, int | None]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError("must be a list of the first and the last id, both counted")
        first, last = (None if bound is None else one.read(bound) for bound in value)
        return first, last

    return Value("list of the first and the last id; null: no end", read, list)


def window() -> Value:
    """Positions before the own one that are seen: a number, or a pair (before, after) of which the second is 0."""

    def read(value: Any) -> int:
        found = value
        if isinstance(value, str):
            try:
                found = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                raise ValueError('must be a number of positions, or a pair such as "(2047, 0)"') from None
        if isinstance(found, list | tuple) and len(found) == 2:
            if found[1] not in (0, -1):
                raise ValueError("must have 0 as its second number: later positions are not seen")
            found = found[0]
        return whole(0).read(found)

    return Value("positions, or a pair (before, 0)", read)


def precision() -> Value:
    """Lightning's names of numbers, of which some are numbers themselves."""
    words = {
        "bf16": ("bf16-mixed", "bf16", "bf16-true"),
        "fp16": ("16-mixed", "16", "16-true"),
        "fp32": ("32", "32-true"),
    }
    known = choice(by={theirs: ours for ours, names in words.items() for theirs in names})
    return Value(known.words, lambda value: known.read(str(value)), known.write)


def passes() -> Value:
    """A number of passes, or 1.0 for all that there are."""

    def read(value: Any) -> int | float:
        found = finite(value, "a whole number, or 1.0 for all")
        if found < 0:
            raise ValueError("must be a whole number, or 1.0 for all")
        if isinstance(found, float) and found not in (0.0, 1.0):
            raise ValueError("must be a whole number, or 1.0 for all; a part of them is not supported")
        return int(found) if found == 0 else found

    return Value("whole number; 1.0: all", read)
