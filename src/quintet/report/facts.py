"""Facts about a run, from its folder and without loading a model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from quintet.config.load import read_run_config
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.track.jsonl import last_values, read_metrics

_RECORDS = 10_000  # of training, evenly spread in a longer run: many times more than a plot can show
MEASURED = ("benchmark/", "text/", "music/")
"""Groups of metrics that are measured after the validation loss."""

_SHOWN = ("step", "train/loss", "validation/loss", "validation/bits_per_byte", "speed/tokens_per_second")


@dataclass(frozen=True)
class Series:
    """A metric at the steps where it was recorded: int64 and fp64 [records]."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float | None:
        """The value recorded last; None where there is none."""
        return float(self.values[-1]) if self.values.size else None

    @property
    def least(self) -> tuple[float, int] | None:
        """The smallest finite value and its step; None where there is none."""
        finite = np.where(np.isfinite(self.values), self.values, np.inf)
        if not np.isfinite(finite).any():
            return None
        index = int(np.argmin(finite))
        return float(self.values[index]), int(self.steps[index])

    def smoothed(self, records: int) -> Series:
        """Return the means of the finite values of ``records`` records each (NaN if there are none), at the step of the
        last of them; with fewer than 2 records a mean, the series itself."""
        if records < 2:
            return self
        count = len(self.values) // records
        groups = self.values[: count * records].reshape(count, records)
        finite = np.isfinite(groups)
        counts = finite.sum(1)
        sums = np.where(finite, groups, 0.0).sum(1)
        means = np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0)
        return Series(self.steps[records - 1 : count * records : records], means)


@dataclass(frozen=True)
class RunFacts:
    """The folder of a run, its run file, and the records of its metrics."""

    folder: Path
    config: RunConfig
    records: Sequence[dict[str, float]]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @cached_property
    def step(self) -> int:
        """The last step that was recorded."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def tokens(self) -> int:
        """Tokens trained on up to that step."""
        return self.step * self.config.batch.tokens

    @property
    def tokens_per_second(self) -> float | None:
        """The median of the finite records; None if there is none."""
        values = self.series("speed/tokens_per_second").values
        values = values[np.isfinite(values)]
        return statistics.median(values.tolist()) if values.size else None

    @cached_property
    def names(self) -> list[str]:
        """Every metric that was recorded, in the order in which it first was."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "step"))

    def series(self, name: str) -> Series:
        """Return a metric over the steps; it is empty if it was never recorded."""
        records = [record for record in self.records if name in record]
        steps = np.array([int(record["step"]) for record in records], np.int64)
        return Series(steps, np.array([record[name] for record in records], float))

    def measured(self) -> dict[str, float]:
        """Return the last value of every metric of benchmarks, texts and music."""
        last = {name: self.series(name).last for name in self.names if name.startswith(MEASURED)}
        return {name: value for name, value in last.items() if value is not None}


def is_circumstance(name: str) -> bool:
    """Return True if ``name``, the last part of a benchmark's metric, is no figure: it says how the benchmark was
    asked, or is a standard error."""
    return name in ("shots", "items") or name.startswith("precision_") or name.endswith("_stderr")


def read_facts(folder: Path) -> RunFacts:
    """Return the facts of the run in ``folder``; the records of a long training are thinned. Raises UserError if
    there is no run."""
    return RunFacts(folder, read_run_config(folder), read_metrics(folder / "metrics.jsonl", _RECORDS))


@dataclass(frozen=True)
class RunSummary:
    """A row of `quintet runs`: the figures recorded last (None if there are none), the local time of the last change,
    and the ``problem`` if the run file cannot be read."""

    name: str
    step: int
    steps: int | None
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    changed: str
    problem: str | None = None


def find_runs(folder: Path) -> list[RunSummary]:
    """Return the runs directly below ``folder``, by name. Raises UserError if there is none."""
    runs = [summarise(file.parent) for file in sorted(folder.glob("*/run.yaml"))]
    if not runs:
        raise UserError(f"{folder}: holds no run; `quintet train` makes one")
    return runs


def summarise(folder: Path) -> RunSummary:
    """Return the row of one run folder."""
    file, steps, problem = folder / "metrics.jsonl", None, None
    last = last_values(file, _SHOWN)
    changed = datetime.fromtimestamp((file if file.exists() else folder / "run.yaml").stat().st_mtime)
    try:
        steps = read_run_config(folder).train.steps
    except UserError as error:
        problem = error.problems[0]
    return RunSummary(
        name=folder.name,
        step=int(last.get("step", 0)),
        steps=steps,
        train_loss=last.get("train/loss"),
        validation_loss=last.get("validation/loss"),
        bits_per_byte=last.get("validation/bits_per_byte"),
        tokens_per_second=last.get("speed/tokens_per_second"),
        changed=changed.strftime("%Y-%m-%d %H:%M"),
        problem=problem,
    )
