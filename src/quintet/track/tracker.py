"""The protocol of a tracker, and the run that it is told about."""

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
    """Receives what a run measures. ``step`` is the number of optimizer steps done.

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


def system_figures(device: torch.device, precision: str) -> dict[str, str]:
    """Device, precision, and versions of what computes; memory in bytes."""
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
