"""The tracker for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.config.track import TensorBoardConfig
from quintet.libraries import check_installed, require
from quintet.track.names import picture
from quintet.track.tracker import RunStatus, Tracked


class TensorBoardTracker:
    """Event files in ``tensorboard/`` of the run folder; a continued run hides the events after its first step."""

    every_step: ClassVar[bool] = False

    def __init__(self, run: Tracked, config: TensorBoardConfig, key: str) -> None:
        library = require("torch.utils.tensorboard", "tensorboard", f"{key}: tensorboard")
        first = run.first_step + 1 if run.first_step else None
        self._writer = library.SummaryWriter(str(run.folder / "tensorboard"), purge_step=first)

    @staticmethod
    def check(config: TensorBoardConfig, key: str) -> None:
        """Raise NotHere if TensorBoard is missing."""
        check_installed("tensorboard", extra="tensorboard", what=f"{key}: tensorboard")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text as it is, not as Markdown."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.split("\n")), step)

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Write the picture."""
        self._writer.add_image(name, np.asarray(picture(files[".png"])), step, dataformats="HWC")

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Write the remaining events."""
        self._writer.close()
