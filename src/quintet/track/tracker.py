"""The protocol of a tracker, and the facts about a run that it gets."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from quintet.config.names import ORIGINAL
from quintet.config.schema import RunConfig
from quintet.system import __version__, gpu_memory

if TYPE_CHECKING:
    import torch

RunStatus = Literal["finished", "stopped", "failed"]  # at its last step, by a signal, by an error


class Tracker(Protocol):
    """Gets the metrics and samples of a run. ``step`` is the number of optimizer steps done.

    With ``every_step`` it gets the training metrics of each step, otherwise those of each `train.log_every`-th step.
    """

    every_step: ClassVar[bool]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the ``metrics`` of ``step``; a name such as ``validation/loss`` starts with its group."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Log a text, such as a sample of the model."""
        ...

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Log a sample of music: the contents of its files, by extension, ``.mid`` and ``.png`` (a piano roll)."""
        ...

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Write the remaining records, the ``status`` of the run and the path of its last ``checkpoint``."""
        ...


@dataclass(frozen=True)
class Tracked:
    """The facts about a run that its trackers get.

    ``first_step`` is the step that it continues from, -1 for a new run. ``system`` has the device and the versions.
    ``say`` prints a line. ``due`` names the measurements that are made again after ``first_step``, because the run
    ended before them (see `quintet.train.evaluation`).
    """

    config: RunConfig
    folder: Path
    first_step: int
    system: dict[str, str]
    say: Callable[[str], None]
    due: Sequence[str] = ()

    @property
    def original(self) -> list[Path]:
        """The files of a dialect in the run folder, as they were written; none if the run file is native."""
        return sorted(file for file in (self.folder / ORIGINAL).rglob("*") if file.is_file())


def system_figures(device: torch.device, precision: str) -> dict[str, str]:
    """Return device, precision, memory in bytes, and versions."""
    import torch

    figures = {
        "device": str(device),
        "precision": precision,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "quintet": __version__,
    }
    if device.type == "cuda":
        figures |= {"gpu": torch.cuda.get_device_name(device), "gpu_memory_bytes": str(gpu_memory(device))}
        figures |= {"cuda": str(torch.version.cuda)}
    return figures
