"""Where metrics go: one small protocol and the backends behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from quintet.config.training import TrackConfig


class Tracker(Protocol):
    """A place that receives what a run measures. ``step`` is the number of optimizer steps done."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take ``metrics`` of ``step``; names with a slash belong to a group, as ``validation/loss``."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text, such as a sample that the model wrote."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def build_trackers(configs: tuple[TrackConfig, ...], folder: Path, first_step: int) -> list[Tracker]:
    """The trackers of a run in ``folder`` that has done ``first_step`` steps; metrics.jsonl is always among them."""
    from quintet.track.jsonl import JsonlTracker
    from quintet.track.tensorboard import TensorBoardTracker

    trackers: list[Tracker] = [JsonlTracker(folder, first_step)]
    trackers += [TensorBoardTracker(folder, first_step) for _ in configs]
    return trackers
