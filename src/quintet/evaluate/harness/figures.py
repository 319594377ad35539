"""What is reported of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_NAMED = 5  # items of a warning that are called by number


@dataclass(frozen=True)
class Figure:
    """A mean over items, and its standard error; NaN where there is none."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Mean and standard error of the mean, s / √n with the sample's s."""
        found = np.asarray(values, dtype=np.float64)
        error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan
        return cls(float(found.mean()), error)


@dataclass(frozen=True)
class Benchmark:
    """The figures of one benchmark over ``items``, of ``parts`` tasks where it is several; ``warnings`` say what was
    left out."""

    figures: Mapping[str, Figure]
    items: int
    parts: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmarks:
    """What was measured, by the name that was asked for, and why the others were not."""

    measured: Mapping[str, Benchmark] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The figures under the names that trackers show, as ``benchmark/<task>/acc`` and ``…/acc_stderr``."""
        found: dict[str, float] = {}
        for name, benchmark in self.measured.items():
            for metric, figure in benchmark.figures.items():
                found[f"benchmark/{name}/{metric}"] = figure.value
                if not math.isnan(figure.error):
                    found[f"benchmark/{name}/{metric}_stderr"] = figure.error
        return found

    def lines(self) -> list[str]:
        """A line for each figure, and what was left out, as a person reads them."""
        rows: list[tuple[str, str, str, str, int]] = [
            (
                name,
                metric,
                f"{figure.value:.4f}",
                "" if math.isnan(figure.error) else f"± {figure.error:.4f}",
                one.items,
            )
            for name, one in self.measured.items()
            for metric, figure in one.figures.items()
        ]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:4]] if rows else []
        found = [
            f"  {name:{widths[0]}}  {metric:{widths[1]}}  {value:>{widths[2]}} {error:{widths[3]}}  of {items:,}"
            for name, metric, value, error, items in rows
        ]
        return [*found, *self.warnings()]

    def warnings(self) -> list[str]:
        """What was left out, a line each."""
        found = [f"{name}: {line}" for name, one in self.measured.items() for line in one.warnings]
        return [*found, *(f"{name}: not measured: {reason}" for name, reason in self.missing.items())]

    def figures(self) -> dict[str, Any]:
        """All of it for JSON, which knows no NaN: null stands for it."""
        tasks = {
            name: {
                "items": one.items,
                "parts": one.parts,
                "warnings": list(one.warnings),
                "figures": {
                    metric: {"value": _known(figure.value), "stderr": _known(figure.error)}
                    for metric, figure in one.figures.items()
                },
            }
            for name, one in self.measured.items()
        }
        return {"tasks": tasks, "not_measured": dict(self.missing)}


def confidence(logprobs: Sequence[float], lengths: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """How sure a model is of the ``right`` choices of an item, by their numbers.

    ``logprobs`` are the summed log-probabilities of the choices in nats, ``lengths`` their characters.
    ``probability`` is that of the right ones under a softmax over ``logprobs``; ``margin`` is the probability of the
    likeliest right choice less that of the likeliest wrong one. ``_norm``: the same with log-probabilities a character.
    ``acc_norm`` is 1 where the likeliest choice a character is right.
    """
    found: dict[str, float] = {}
    sums = np.asarray(logprobs, dtype=np.float64)
    for suffix, scores in (("", sums), ("_norm", sums / np.maximum(lengths, 1))):
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        wrong = np.delete(chances, list(right))
        found[f"probability{suffix}"] = float(chances[list(right)].sum())
        found[f"margin{suffix}"] = float(chances[list(right)].max() - wrong.max(initial=0.0))
    found["acc_norm"] = float(int(np.argmax(sums / np.maximum(lengths, 1))) in right)
    return found


def count_of(what: str, items: Sequence[int], total: int) -> str:
    """A warning about ``items`` of ``total``, some of which are called by number."""
    named = ", ".join(map(str, items[:_NAMED])) + (", …" if len(items) > _NAMED else "")
    return f"{len(items):,} of {total:,} items {what} (number {named})"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
