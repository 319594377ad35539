"""All trackers of a run as one, and the table of their kinds."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from quintet.config.schema import RunConfig
from quintet.errors import UserError, one_line
from quintet.processes import broadcast_from_rank0
from quintet.track.jsonl import JsonlTracker
from quintet.track.mlflow import MLflowTracker
from quintet.track.tensorboard import TensorBoardTracker
from quintet.track.tracker import RunStatus, Tracked, Tracker
from quintet.track.wandb import WandbTracker

TRACKERS: dict[str, Any] = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker, "mlflow": MLflowTracker}
"""The class of each kind: a `Tracker` built from the run, its config and its key, such as ``track[0]``. Its ``check``
takes config and key, before anything is built."""


class CompositeTracker:
    """A tracker that passes everything to each of ``trackers``.

    A tracker that fails does not end the training: ``say`` gets a line on its first failure, and at the end their
    number.
    """

    every_step: ClassVar[bool] = True

    def __init__(self, trackers: Iterable[Tracker] = (), say: Callable[[str], None] = lambda _: None) -> None:
        self.trackers, self.say = list(trackers), say
        self._failures = Counter[str]()
        self._tracked: Tracked | None = None

    def start(self, run: Tracked) -> None:
        """Start all trackers of ``run``, in rank 0 only. Raises UserError if one cannot be reached."""
        self._tracked = run
        broadcast_from_rank0(lambda: self.trackers.extend(build_trackers(run).trackers))

    def go_back(self, step: int) -> None:
        """Restart the trackers after ``step``, as in a run that continues from there.

        A tracker that cannot be started is dropped, with a line for `say`.
        """
        assert self._tracked is not None
        self._each(lambda tracker: tracker.close("stopped"))
        self.trackers.clear()
        again = replace(self._tracked, first_step=step, due=())
        broadcast_from_rank0(lambda: self.trackers.extend(build_trackers(again, required=False).trackers))

    def log(self, step: int, metrics: dict[str, float], *, log_point: bool = True) -> None:
        """Log ``metrics``; if ``step`` is not a log point, only to trackers with ``every_step``."""
        self._each(lambda tracker: tracker.log(step, metrics) if log_point or tracker.every_step else None)

    def text(self, step: int, name: str, text: str) -> None:
        self._each(lambda tracker: tracker.text(step, name, text))

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        self._each(lambda tracker: tracker.files(step, name, files))

    def sync(self) -> None:
        """Write the run's own records and samples to the disk, before the checkpoint that follows them."""
        self._each(lambda tracker: tracker.sync() if isinstance(tracker, JsonlTracker) else None)

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        self._each(lambda tracker: tracker.close(status, checkpoint))
        for name, count in self._failures.items():
            if count > 1:
                self.say(f"{name} failed {count:,} times; it lacks these records")

    def _each(self, act: Callable[[Tracker], object]) -> None:
        for tracker in self.trackers:
            try:
                act(tracker)
            except Exception as error:  # a lost record must not end the training
                name = type(tracker).__name__.removesuffix("Tracker")
                self._failures[name] += 1
                if self._failures[name] == 1:
                    self.say(f"{name} fails: {one_line(error)}; training goes on")


def build_trackers(run: Tracked, *, required: bool = True) -> CompositeTracker:
    """Build the trackers of ``run``; metrics.jsonl is always among them.

    Raises UserError if one cannot be reached and is required; with ``required`` False none is.
    """
    trackers = CompositeTracker([JsonlTracker(run.folder, run.first_step, run.due, run.say)], run.say)
    try:
        for index, config in enumerate(run.config.track):
            try:
                trackers.trackers.append(TRACKERS[config.kind](run, config, f"track[{index}]"))
            except UserError as error:
                if required and getattr(config, "required", True):
                    raise
                why = "it is not required, and " if required else ""
                run.say(f"{error}; {why}the run goes on without it")
    except UserError:
        trackers.close("failed")
        raise
    return trackers


def check_trackers(config: RunConfig) -> None:
    """Raise UserError for each tracker of ``config`` whose library is missing or refuses its arguments."""
    problems: list[str] = []
    for index, tracker in enumerate(config.track):
        try:
            TRACKERS[tracker.kind].check(tracker, f"track[{index}]")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
