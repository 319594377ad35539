"""Periods of a run: a whole number counts steps, a number with a point is a fraction of the run's steps."""

from __future__ import annotations

import math
from fractions import Fraction

from quintet.config.section import ConfigErrors, ConfigSection, config_error


def fraction_errors(part: ConfigSection, *names: str) -> ConfigErrors:
    """Yield an error for each of the keys ``names`` of ``part`` whose fraction is more than the whole run."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, float) and value > 1:
            yield config_error(name, f"{value:g} is no fraction of the run; write a number of steps without a point")


def steps_of(duration: int | float, steps: int) -> int:
    """Steps that ``duration`` stands for in a run of ``steps``; a fraction is rounded up.

    The only place where a fraction of steps becomes steps.
    """
    return duration if isinstance(duration, int) else rounded_up(duration, steps)


def rounded_up(factor: float, count: int, divisor: int = 1) -> int:
    """``factor · count / divisor`` rounded up, with ``factor`` as it is written: 0.07 of 100 is 7, though 0.07 · 100 is
    above 7 in floating point."""
    return math.ceil(Fraction(str(factor)) * count / divisor)


def fraction_of(part: float, whole: float) -> float:
    """``part / whole`` as a fraction of a run, at most 1. Never above the quotient, so that `steps_of` rounds it up to
    what the quotient itself is rounded up to: 5 / 7 of 700 steps are 500."""
    quotient, found = Fraction(str(part)) / Fraction(str(whole)), part / whole
    while Fraction(str(found)) > quotient:
        found = math.nextafter(found, 0.0)
    return min(1.0, found)
