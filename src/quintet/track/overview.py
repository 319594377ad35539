"""What a table of runs shows, read from run folders without loading a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from quintet.config.load import load_run_config
from quintet.errors import UserError
from quintet.track.jsonl import read_metrics


@dataclass(frozen=True)
class RunSummary:
    """One row: figures are those last recorded, None where there are none; ``changed`` is local time."""

    name: str
    step: int
    steps: int | None
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    changed: str


def find_runs(folder: Path) -> list[RunSummary]:
    """The runs directly below ``folder``, by name. Raises UserError when there is none."""
    found = [summarise(file.parent) for file in sorted(folder.glob("*/run.yaml"))]
    if not found:
        raise UserError(f"{folder}: holds no run; `quintet train` makes one")
    return found


def summarise(folder: Path) -> RunSummary:
    """The row of one run folder."""
    file = folder / "metrics.jsonl"
    last: dict[str, float] = {}
    for record in read_metrics(file):
        last |= record
    changed = datetime.fromtimestamp((file if file.exists() else folder / "run.yaml").stat().st_mtime)
    return RunSummary(
        name=folder.name,
        step=int(last.get("step", 0)),
        steps=load_run_config([folder / "run.yaml"]).config.train.steps,
        train_loss=last.get("train/loss"),
        validation_loss=last.get("validation/loss"),
        bits_per_byte=last.get("validation/bits_per_byte"),
        tokens_per_second=last.get("speed/tokens_per_second"),
        changed=changed.strftime("%Y-%m-%d %H:%M"),
    )
