"""What a name in a run file or on the command line can stand for: a run, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

RUN_FILE = "run.yaml"
"""The file that makes a folder that of a run."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is the folder of a run."""
    return (folder / RUN_FILE).is_file()


def run_folders(name: str) -> tuple[Path, Path]:
    """Where the run ``name`` may lie: ``name`` may be its folder, or its name under ``runs/``."""
    return Path(name).expanduser(), Path("runs") / name


def run_named(name: str) -> Path | None:
    """The folder of the run ``name``, None where there is no such run."""
    return next((folder for folder in run_folders(name) if is_run(folder)), None)


def is_hub_name(name: str) -> bool:
    """Whether ``name`` has the form of a name on the hub: ``owner/name``, or ``name`` alone."""
    return _HUB_NAME.fullmatch(name) is not None
