"""Periods of a run: a whole number counts steps, a number with a point is a fraction of the run's steps."""

from __future__ import annotations

import math
from fractions import Fraction

from quintet.config.part import Part, problem


def check_fractions(part: Part, *names: str) -> None:
    """Raise the problem of the first of the keys ``names`` of ``part`` whose fraction is more than the whole run."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, float) and value > 1:
            raise problem(name, f"{value:g} is no fraction of the run; write a number of steps without a point")


def steps_of(duration: int | float, steps: int) -> int:
    """Steps that ``duration`` stands for in a run of ``steps``; a fraction is rounded up.

    The fraction is taken as it is written: 0.07 of 100 steps is 7, though 0.07 · 100 is above 7 in floating point.
    """
    return duration if isinstance(duration, int) else math.ceil(Fraction(str(duration)) * steps)
