"""Names of files, runs and repositories of the Hugging Face hub in run files and on the command line."""

import os
import re
from pathlib import Path
from typing import Literal

from quintet.errors import UserError

RUN_FILE = "run.yaml"
"""The file that every run folder has."""

ORIGINAL = "original"
"""The folder in a run folder that holds the files of a dialect as they were written."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


PATHS = ("path", "dir", "data_dir", "cache_dir", "runs_dir", "name_or_path")
"""Keys of a run file that hold a path, or a name that may be one."""

INPUTS = (*(key for key in PATHS if key != "runs_dir"), "template")
"""Keys of paths that are relative to the folder in which the run was started, also when it is continued elsewhere."""

_LONGEST_FILE_NAME = 255  # bytes, on every common file system
_LONGEST_PATH = 4095  # bytes on Linux, without the terminator (PATH_MAX in limits.h)
_LONGEST_NAME = 200  # bytes; leaves room for the names of files beside a run folder
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³")}
"""Names that Windows reserves for devices, also with an extension
(https://learn.microsoft.com/windows/win32/fileio/naming-a-file)."""


def name_problem(name: str) -> str | None:
    """Return why a run ``name`` cannot be a folder's name on all of Linux, macOS and Windows, None if it can."""
    if name in (".", ".."):
        return "is the name of an existing folder; choose another name"
    if not name or _NOT_IN_NAMES.search(name):
        return f"is not a valid name; use only letters, digits, '.', '_' and '-', such as {usable_name(name)!r}"
    if name.endswith("."):
        return "ends with a point, which some systems remove; choose another name"
    if name.partition(".")[0].upper() in _DEVICES:
        return f"is reserved for a device on Windows, as are {', '.join(sorted(_DEVICES)[:4])} …; choose another name"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is {len(name.encode())} bytes long, and must have at most {_LONGEST_NAME}; choose a shorter name"
    return None


def usable_name(text: str) -> str:
    """Return a name for a run that is as near to ``text`` as possible.

    >>> usable_name("my run (2)/lr: 1e-3")
    'my-run-2-lr-1e-3'
    """
    replaced = _NOT_IN_NAMES.sub("-", text)
    name = (replaced if replaced == text else replaced.strip("-")).rstrip(".")
    while len(name.encode()) > _LONGEST_NAME:
        name = name[:-1].rstrip(".")
    return f"run-{name}".rstrip("-") if not name or name_problem(name) else name


def local_path(text: str | Path) -> Path:
    """Return the path that ``text`` spells, with ``~`` and ``~user`` expanded.

    Raises UserError for a path that no file can have: an unknown user, a NUL, a character that the file system cannot
    write, a part that is too long for a file's name, or a path that is too long.
    """
    path, shown = Path(text), repr(str(text) if len(str(text)) < 60 else f"{str(text)[:60]}…")
    if "\0" in str(text):
        raise UserError(f"{shown} has a NUL character, and no path does")
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError as error:
        raise UserError(f"{shown} has the character {error.object[error.start]!r}, and no path does") from None
    if longest > _LONGEST_FILE_NAME:
        raise UserError(f"{shown} has a part of more than {_LONGEST_FILE_NAME} bytes, and no file has so long a name")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UserError(f"{shown} is longer than {_LONGEST_PATH} bytes, and no path is")
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{shown}: {path.parts[0]} stands for the folder of a user, and there is none") from None


def is_path(text: str | Path) -> bool:
    """True if the file or folder ``text`` exists, in a folder that can be entered."""
    try:
        return local_path(text).exists()
    except (UserError, OSError):
        return False


def is_run(folder: Path) -> bool:
    """True if ``folder`` is the folder of a run."""
    return (folder / RUN_FILE).is_file()


HEADING = "# The run as it was resolved; every value is written out."
"""The first line of the run file that a run writes into its folder."""

_STARTED_IN = "# started in: "


def started_in(folder: Path | str) -> str:
    """Return the line of a run file that records the working ``folder`` to which its paths are relative."""
    return f"{_STARTED_IN}{folder}\n"


def is_written_by_run(file: Path) -> bool:
    """True if ``file`` is the run file that a run wrote into its own folder, and not a copy elsewhere."""
    if file.name != RUN_FILE or not any((file.parent / name).exists() for name in ("tokenizer", "checkpoints")):
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline().rstrip() == HEADING


def working_folder(run: Path) -> Path | None:
    """Return the working folder in which the run in the folder ``run`` was started, None if it is unknown or does not
    exist any more."""
    with (run / RUN_FILE).open(encoding="utf-8", errors="replace") as lines:
        folder = next((line[len(_STARTED_IN) :].rstrip("\n") for line in lines if line.startswith(_STARTED_IN)), None)
    return Path(folder) if folder is not None and Path(folder).is_dir() else None


def run_folders(name: str) -> tuple[Path, Path]:
    """Return the two possible folders of the run ``name``: ``name`` itself, and that name under ``runs/``."""
    return local_path(name), Path("runs") / name


def run_named(name: str) -> Path | None:
    """Return the folder of the run ``name``, None if there is no such run."""
    return next((folder for folder in run_folders(name) if is_run(folder)), None)


def find_run(name: str) -> Path:
    """Return the folder of the run ``name``: a run folder, or the name of a run under ``runs/``.

    Raises UserError if there is no such run.
    """
    folder = run_named(name)
    if folder is None:
        here, below = run_folders(name)
        raise UserError(f"{name}: no run there (neither {here}/run.yaml nor {below}/run.yaml exists)")
    return folder


def is_hub_name(name: str) -> bool:
    """True if ``name`` has the form of a name on the hub: ``owner/name``, or only ``name``."""
    return _HUB_NAME.fullmatch(name) is not None


def in_hub_cache(name: str, kind: Literal["model", "dataset"]) -> bool:
    """True if the Hugging Face hub's cache on this machine has files of the repository ``name``.

    For its folder see https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables.
    """
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    places = [hub / f"{kind}s--{name.replace('/', '--')}" / "snapshots"]
    if kind == "dataset":
        places.append(Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.replace("/", "___"))
    return any(is_path(place) and any(place.iterdir()) for place in places)


_PLACEHOLDER = re.compile(r"<[^<>]*>|(^|/)path/to/|^your/", re.IGNORECASE)


def placeholder_problem(key: str, text: str) -> str | None:
    """Return a message on the value ``text`` of ``key`` if it is a placeholder, otherwise None."""
    return f"{key}: {text} is a placeholder; give the path or name: {key}=…" if is_placeholder(text) else None


def is_placeholder(text: str) -> bool:
    """True if ``text`` is a placeholder for a path or name, such as ``<name>`` or ``/path/to/data``."""
    return _PLACEHOLDER.search(text) is not None
