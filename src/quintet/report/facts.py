"""Facts on a run from its folder, read without loading a model."""

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

_RECORDS = 10_000  # of training, of a longer run evenly spread: many times what a drawing can show
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
        at = int(np.argmin(finite))
        return float(self.values[at]), int(self.steps[at])

    def smoothed(self, records: int) -> Series:
        """The mean of the finite values of each ``records`` records, at the step of the last of them, NaN where there
        are none; the same for fewer than 2."""
        if records < 2:
            return self
        count = len(self.values) // records
        used = self.values[: count * records].reshape(count, records)
        finite = np.isfinite(used)
        counts = finite.sum(1)
        sums = np.where(finite, used, 0.0).sum(1)
        means = np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0)
        return Series(self.steps[records - 1 : count * records : records], means)


@dataclass(frozen=True)
class RunFacts:
    """A run's folder, run file, and the records of its metrics."""

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
        """Tokens that were trained on up to there."""
        return self.step * self.config.batch.tokens

    @property
    def tokens_per_second(self) -> float | None:
        """The median over the finite records; None where there is none."""
        values = self.series("speed/tokens_per_second").values
        values = values[np.isfinite(values)]
        return statistics.median(values.tolist()) if values.size else None

    @cached_property
    def names(self) -> list[str]:
        """Every metric that was recorded, in the order in which it first was."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "step"))

    def series(self, name: str) -> Series:
        """A metric over the steps; empty where it was never recorded."""
        found = [(int(record["step"]), record[name]) for record in self.records if name in record]
        return Series(np.array([step for step, _ in found], np.int64), np.array([value for _, value in found], float))

    def measured(self) -> dict[str, float]:
        """The last value of every metric of benchmarks, texts and music."""
        last = {name: self.series(name).last for name in self.names if name.startswith(MEASURED)}
        return {name: value for name, value in last.items() if value is not None}


def about_asking(name: str) -> bool:
    """True if the last part of a benchmark's metric says how it was asked and how sure it is, and is no figure."""
    return name in ("shots", "items") or name.startswith("precision_") or name.endswith("_stderr")


def read_facts(folder: Path) -> RunFacts:
    """The facts of the run in ``folder``; of a long run not every record of training. Raises UserError when there is no
    run."""
    return RunFacts(folder, read_run_config(folder), read_metrics(folder / "metrics.jsonl", _RECORDS))


@dataclass(frozen=True)
class RunSummary:
    """One row: figures are those last recorded, None where there are none; ``changed`` is local time, and ``problem``
    says why the run file cannot be read."""

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
    """The runs directly below ``folder``, by name. Raises UserError when there is none."""
    found = [summarise(file.parent) for file in sorted(folder.glob("*/run.yaml"))]
    if not found:
        raise UserError(f"{folder}: holds no run; `quintet train` makes one")
    return found


def summarise(folder: Path) -> RunSummary:
    """The row of one run folder."""
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
