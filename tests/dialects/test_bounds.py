"""Bounds of keys: a native key accepts what the dialect's key that sets it accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter, ValidationError

from quintet.config.describe import KeyInfo, walk
from quintet.config.dialects import NAMES, dialect_named
from quintet.config.dialects.types import Fraction, Share
from quintet.config.optimizer import AdamWConfig
from quintet.config.schedule import LinearDropoutConfig

_BOUND = re.compile(r"(at least|above|at most|below) (-?[\d.]+)")


@dataclass(frozen=True)
class Bounds:
    """The bounds of a number, as its page gives them."""

    low: float
    low_counts: bool
    high: float
    high_counts: bool

    @classmethod
    def of(cls, key: KeyInfo) -> Bounds:
        found = cls(float("-inf"), True, float("inf"), True)
        for word, number in _BOUND.findall(", ".join(key.constraints)):
            if word in ("at least", "above"):
                found = cls(float(number), word == "at least", found.high, found.high_counts)
            else:
                found = cls(found.low, found.low_counts, float(number), word == "at most")
        return found

    def accepts(self, other: Bounds) -> bool:
        """Return True if all numbers within ``other`` are within these bounds."""
        low = self.low < other.low or (self.low == other.low and (self.low_counts or not other.low_counts))
        high = self.high > other.high or (self.high == other.high and (self.high_counts or not other.high_counts))
        return low and high


NATIVE: dict[str, list[KeyInfo]] = {}
for native in walk():
    NATIVE.setdefault(native.path, []).append(native)


@pytest.mark.parametrize("name", NAMES)
def test_a_native_key_accepts_what_the_dialects_key_accepts(name: str) -> None:
    refused = [
        f"{key.path} ({key.accepts}) sets {key.role.to} ({', '.join(one.accepts for one in found)})"
        for key in dialect_named(name).keys
        if key.role.to and not key.words and key.special is None
        for found in [NATIVE.get(re.sub(r"\[\d+\]", "[]", key.role.to), [])]
        if found and not any(Bounds.of(one).accepts(Bounds.of(key)) for one in found)
    ]
    assert not refused


@pytest.mark.parametrize("name", [*NAMES, "native"])
def test_a_dropout_may_drop_all_and_a_learning_rate_may_be_0(name: str) -> None:
    keys = [key for found in NATIVE.values() for key in found] if name == "native" else dialect_named(name).keys
    rates = {
        key.path: Bounds.of(key)
        for key in keys
        if key.constraints
        and (key.unit == "probability" or re.search(r"dropout|pdrop|_dropout_p", key.role.to or ""))
        and re.search(r"drop|rate", key.path)
    }
    learning = {
        key.path: Bounds.of(key)
        for key in keys
        if (key.role.to or key.path) == "optimizer.lr" and key.type.startswith("number")
    }
    whole, zero = Bounds(0, True, 1, True), Bounds(0, True, float("inf"), True)
    bad = [path for path, bounds in rates.items() if not bounds.accepts(whole) and "schedule" not in path]
    bad += [path for path, bounds in learning.items() if not bounds.accepts(zero)]
    assert not bad


def test_the_ends_of_a_range_are_as_described() -> None:
    assert TypeAdapter(Fraction).validate_python(1.0) == 1.0
    with pytest.raises(ValidationError):
        TypeAdapter(Share).validate_python(1.0)
    assert AdamWConfig(lr=0.0).lr == 0.0
    assert LinearDropoutConfig(kind="linear", start=0.0, end=1.0).end == 1.0
