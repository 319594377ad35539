"""Where metrics go: one small protocol and the backends behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from quintet.config.names import ORIGINAL
from quintet.config.schema import RunConfig
from quintet.errors import UserError

RunStatus = Literal["finished", "stopped", "failed"]  # at its last step, by a signal, by an error


class Tracker(Protocol):
    """A place that receives what a run measures. ``step`` is the number of optimizer steps done.

    One with ``every_step`` gets the training metrics of each step, any other those of each `train.log_every`-th.
    """

    every_step: ClassVar[bool]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take ``metrics`` of ``step``; names with a slash belong to a group, as ``validation/loss``."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text, such as a sample that the model wrote."""
        ...

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Take a sample that is no text, as files by their endings: ``.mid`` and, the same as a picture, ``.png``."""
        ...

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Write what is still held back, how the run ended and where its last checkpoint lies."""
        ...


@dataclass(frozen=True)
class Tracked:
    """The run that trackers are told about.

    ``first_step`` is the number of steps that it continues from, -1 where it starts; ``system`` are the device and the
    versions in words; ``say`` prints a line; ``due`` names what is measured again after ``first_step``, for the run
    ended before all of it was (see ``quintet.train.evaluation``).
    """

    config: RunConfig
    folder: Path
    first_step: int
    system: dict[str, str]
    say: Callable[[str], None]
    due: Sequence[str] = ()

    @property
    def original(self) -> list[Path]:
        """The files of a dialect as they were written, in the run folder; none where the run file is native."""
        return sorted(file for file in (self.folder / ORIGINAL).rglob("*") if file.is_file())


def build_trackers(run: Tracked) -> list[Tracker]:
    """The trackers of ``run``; metrics.jsonl is always among them. Raises UserError if one cannot be reached."""
    from quintet.track.jsonl import JsonlTracker

    trackers: list[Tracker] = [JsonlTracker(run.folder, run.first_step, run.due)]
    try:
        for index in range(len(run.config.track)):
            trackers.append(_build(run, index))  # noqa: PERF401  what is built is closed if the next one fails
    except UserError:
        close_trackers(trackers, "failed", None)
        raise
    return trackers


def close_trackers(trackers: list[Tracker], status: RunStatus, checkpoint: Path | None) -> None:
    """Close all of ``trackers``."""
    for tracker in trackers:
        tracker.close(status, checkpoint)


def check_trackers(config: RunConfig) -> None:
    """Raise UserError for each tracker of ``config`` whose library is missing or does not know what it is given."""
    problems: list[str] = []
    for index, tracker in enumerate(config.track):
        try:
            if tracker.kind == "wandb":
                from quintet.track.wandb import check_wandb

                check_wandb(tracker, f"track[{index}]")
            elif tracker.kind == "mlflow":
                from quintet.track.mlflow import check_installed

                check_installed(f"track[{index}]")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _build(run: Tracked, index: int) -> Tracker:
    config, key = run.config.track[index], f"track[{index}]"
    if config.kind == "wandb":
        from quintet.track.wandb import WandbTracker

        return WandbTracker(run, config, key)
    if config.kind == "mlflow":
        from quintet.track.mlflow import MLflowTracker

        return MLflowTracker(run, config, key)
    from quintet.track.tensorboard import TensorBoardTracker

    return TensorBoardTracker(run.folder, run.first_step)
