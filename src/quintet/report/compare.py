"""Tables of settings and figures of several runs, from their folders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quintet.config.dump import differences
from quintet.config.keypath import ABSENT, is_list, is_mapping, lookup, path_of
from quintet.config.reference import as_yaml
from quintet.config.secrets import hidden
from quintet.report.facts import RunFacts

# Settings that do not change what is trained: where a run is, what it measures and on what it runs.
_IMMATERIAL = (
    "name",
    "runs_dir",
    "data.cache_dir",
    "data.processes",
    "evaluate",
    "sample",
    "checkpoint",
    "track",
    "parallel",
    "train.log_every",
    "train.device",
    "train.compile",
    "train.micro_batch_size",
    "train.accumulation",
    "loss.chunk",
)

_ERROR = "_stderr"  # ends the name of a figure's standard error


@dataclass(frozen=True)
class Row:
    """A name with the value of each run. ``better`` is the index of the best value, None if none is better; ``errors``
    are the standard errors of values that have one."""

    name: str
    values: tuple[Any, ...]
    better: int | None = None
    errors: tuple[float | None, ...] = ()

    def cells(self) -> list[str]:
        """Return the values as text."""
        errors = self.errors or (None,) * len(self.values)
        return [
            shown(value) + ("" if error is None else f" ± {shown(error)}")
            for value, error in zip(self.values, errors, strict=True)
        ]


def setting_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Return the keys in which the run files differ, with the value of each run, None if it has no such key. Keys that
    do not change what is trained are omitted."""
    keys: dict[str, None] = {}
    for other in runs[1:]:
        keys |= dict.fromkeys(key for key, _, _ in differences(runs[0].config, other.config))
    kept = [
        key
        for key in keys
        if not any(key == other or key.startswith((f"{other}.", f"{other}[")) for other in _IMMATERIAL)
    ]
    values = [hidden(run.config) for run in runs]
    rows = [[lookup(value, path_of(key)) for value in values] for key in kept]
    return [Row(key, tuple(None if v is ABSENT else v for v in row)) for key, row in zip(kept, rows, strict=True)]


def figure_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Return steps, tokens, losses, speed and other measured figures of each run; None for one that was not
    measured."""
    least = [run.series("validation/loss").least for run in runs]
    rows = [
        Row("steps", tuple(run.step for run in runs)),
        Row("tokens", tuple(run.tokens for run in runs)),
        _row("final training loss", [run.series("train/loss").last for run in runs]),
        _row("final validation loss", [run.series("validation/loss").last for run in runs]),
        _row("best validation loss", [None if best is None else best[0] for best in least]),
        Row("… at step", tuple(None if best is None else best[1] for best in least)),
        _row("validation bits per byte", [run.series("validation/bits_per_byte").last for run in runs]),
        _row("tokens per second", [run.tokens_per_second for run in runs], highest=True),
    ]
    measured = [run.measured() for run in runs]
    names = dict.fromkeys(name for figures in measured for name in figures if not name.endswith(_ERROR))
    for name in names:
        row = _row(name, [figures.get(name) for figures in measured], highest=_is_score(name))
        rows.append(replace(row, errors=tuple(figures.get(name + _ERROR) for figures in measured)))
    return [row for row in rows if any(value is not None for value in row.values)]


def shown(value: Any) -> str:
    """Return a figure or a setting as text; "" for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return setting(value)


def setting(value: Any) -> str:
    """Return a value of a run file on one line; "" for a key that does not exist."""
    if value is None:
        return ""
    if is_mapping(value):
        return "{" + ", ".join(f"{name}: {setting(inner)}" for name, inner in value.items() if inner is not None) + "}"
    if is_list(value):
        return "[" + ", ".join(map(setting, value)) + "]"
    return as_yaml(value)


def _is_score(name: str) -> bool | None:
    """Return True if more is better, False if less is, None if that is not known."""
    last = name.rsplit("/", 1)[-1]
    higher = ("acc", "accuracy", "acc_norm", "byte_accuracy", "exact_match", "f1", "probability", "margin")
    if last.startswith(higher) or "f1" in last:
        return True
    lower = ("bits_per_byte", "byte_perplexity", "perplexity", "loss", "calibration_error", "brier")
    return False if last.startswith(lower) else None


def _row(name: str, values: Sequence[float | None], highest: bool | None = False) -> Row:
    known = [(value, index) for index, value in enumerate(values) if value is not None and math.isfinite(value)]
    if highest is None or len(known) < 2 or len({value for value, _ in known}) < 2:
        return Row(name, tuple(values))
    return Row(name, tuple(values), (max if highest else min)(known)[1])
