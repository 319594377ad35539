"""The figures that are reported of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_NAMED = 5  # items of a warning that are called by number


@dataclass(frozen=True)
class Figure:
    """A figure over ``items`` items that were asked after ``shots`` examples, and its standard error; NaN where there
    is none."""

    value: float
    error: float
    items: int
    shots: int


@dataclass(frozen=True)
class Benchmark:
    """The figures of one benchmark over ``items``, of ``parts`` tasks where it is several; ``warnings`` say what was
    left out. A figure that is one of a task alone is named ``<task>/<figure>``."""

    figures: Mapping[str, Figure]
    items: int
    parts: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks that were measured in ``precision``, by the name that was asked for, and why the others were
    not."""

    precision: str
    measured: Mapping[str, Benchmark] = field(default_factory=dict[str, Benchmark])
    missing: Mapping[str, str] = field(default_factory=dict[str, str])

    def metrics(self) -> dict[str, float]:
        """The figures under the names that trackers show, as ``benchmark/<task>/acc`` and ``…/acc_stderr``, and beside
        them ``…/items``, ``…/shots`` and 1 as ``…/precision_fp32``, by what they were computed in."""
        found: dict[str, float] = {}
        for name, benchmark in self.measured.items():
            for metric, figure in benchmark.figures.items():
                row, _, last = f"benchmark/{name}/{metric}".rpartition("/")
                found[f"{row}/{last}"] = figure.value
                if not math.isnan(figure.error):
                    found[f"{row}/{last}_stderr"] = figure.error
                found[f"{row}/items"] = max(figure.items, found.get(f"{row}/items", 0))
                found[f"{row}/shots"] = figure.shots
                found[f"{row}/precision_{self.precision}"] = 1
        return found

    def lines(self) -> list[str]:
        """A line for each figure, and what was left out, as a person reads them."""
        rows = [
            (
                name,
                metric,
                f"{figure.value:.4f}",
                "" if math.isnan(figure.error) else f"± {figure.error:.4f}",
                f"{figure.shots}-shot",
                f"{self.precision}, of {figure.items:,}",
            )
            for name, one in self.measured.items()
            for metric, figure in one.figures.items()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        found = [
            f"  {name:{widths[0]}}  {metric:{widths[1]}}  {value:>{widths[2]}} {error:{widths[3]}}  "
            f"{shots:>{widths[4]}} in {rest}"
            for name, metric, value, error, shots, rest in rows
        ]
        return [*found, *self.warnings()]

    def warnings(self) -> list[str]:
        """A line for each thing that was left out."""
        found = [f"{name}: {line}" for name, one in self.measured.items() for line in one.warnings]
        return [*found, *(f"{name}: not measured: {reason}" for name, reason in self.missing.items())]

    def figures(self) -> dict[str, Any]:
        """All of it for JSON, which knows neither NaN nor infinity: null stands for them."""
        tasks = {
            name: {
                "items": one.items,
                "parts": one.parts,
                "warnings": list(one.warnings),
                "figures": {metric: self._figure(figure) for metric, figure in one.figures.items()},
            }
            for name, one in self.measured.items()
        }
        return {"precision": self.precision, "tasks": tasks, "not_measured": dict(self.missing)}

    def _figure(self, figure: Figure) -> dict[str, Any]:
        known = {"value": _known(figure.value), "stderr": _known(figure.error)}
        return {**known, "items": figure.items, "shots": figure.shots, "precision": self.precision}


def confidence(logprobs: Sequence[float], lengths: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """The certainty of a model about the ``right`` choices of an item, by their numbers.

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
    return value if math.isfinite(value) else None
