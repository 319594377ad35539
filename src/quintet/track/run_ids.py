"""Which run of a tracker a run folder belongs to, so that a continued run continues it."""

from __future__ import annotations

import json
from pathlib import Path

from quintet.files import write_text


class RunIds:
    """``tracking.json`` of a run folder: the id of the tracker's run, by tracker and place."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tracking.json"

    def get(self, place: str) -> str | None:
        """The id at ``place``, None if the run has not been there."""
        return self._read().get(place)

    def set(self, place: str, run_id: str) -> None:
        """Keep ``run_id``; a kill leaves the old file or the new one."""
        write_text(self._file, json.dumps(self._read() | {place: run_id}, indent=2))

    def _read(self) -> dict[str, str]:
        return json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
