"""Several runs side by side, from what their folders say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quintet.config.dump import differences
from quintet.config.keypath import ABSENT, is_list, is_mapping, lookup, path_of
from quintet.config.reference import as_yaml
from quintet.config.secrets import hidden
from quintet.report.facts import RunFacts

# What says where a run lies, when it looks at itself and on what it runs, not what is learnt.
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

_ERROR = "_stderr"  # what the name of a figure's standard error ends with


@dataclass(frozen=True)
class Row:
    """A name and the value of each run; ``better`` is the index of the run with the best value, None where it means
    nothing, and ``errors`` are the standard errors of values that have one."""

    name: str
    values: tuple[Any, ...]
    better: int | None = None
    errors: tuple[float | None, ...] = ()

    def cells(self) -> list[str]:
        """The values as a person reads them."""
        errors = self.errors or (None,) * len(self.values)
        return [
            shown(value) + ("" if error is None else f" ± {shown(error)}")
            for value, error in zip(self.values, errors, strict=True)
        ]


def setting_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """The keys in which the run files differ, without those that change nothing of what is learnt, with the value of
    each run; None where a run has no such key."""
    keys: dict[str, None] = {}
    for other in runs[1:]:
        keys |= dict.fromkeys(key for key, _, _ in differences(runs[0].config, other.config))
    kept = [key for key in keys if not any(key == one or key.startswith((f"{one}.", f"{one}[")) for one in _IMMATERIAL)]
    values = [hidden(run.config) for run in runs]
    return [Row(key, tuple(_found(lookup(value, path_of(key))) for value in values)) for key in kept]


def figure_rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Steps, tokens, losses, speed and what else was measured, of each run; None where it was not."""
    least = [run.series("validation/loss").least for run in runs]
    rows = [
        Row("steps", tuple(run.step for run in runs)),
        Row("tokens", tuple(run.tokens for run in runs)),
        _row("final training loss", [run.series("train/loss").last for run in runs]),
        _row("final validation loss", [run.series("validation/loss").last for run in runs]),
        _row("best validation loss", [None if one is None else one[0] for one in least]),
        Row("… at step", tuple(None if one is None else one[1] for one in least)),
        _row("validation bits per byte", [run.series("validation/bits_per_byte").last for run in runs]),
        _row("tokens per second", [run.tokens_per_second for run in runs], highest=True),
    ]
    measured = [run.measured() for run in runs]
    names = dict.fromkeys(name for one in measured for name in one if not name.endswith(_ERROR))
    for name in names:
        row = _row(name, [one.get(name) for one in measured], highest=_is_score(name))
        rows.append(replace(row, errors=tuple(one.get(name + _ERROR) for one in measured)))
    return [row for row in rows if any(value is not None for value in row.values)]


def shown(value: Any) -> str:
    """A figure or a setting as a person reads it; "" for none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return setting(value)


def setting(value: Any) -> str:
    """A value of a run file on one line; "" for a key that is not there."""
    if value is None:
        return ""
    if is_mapping(value):
        return "{" + ", ".join(f"{name}: {setting(inner)}" for name, inner in value.items() if inner is not None) + "}"
    if is_list(value):
        return "[" + ", ".join(map(setting, value)) + "]"
    return as_yaml(value)


def _found(value: Any) -> Any:
    return None if value is ABSENT else value


def _is_score(name: str) -> bool | None:
    """True if more is better: True, False, or None where neither is said."""
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
