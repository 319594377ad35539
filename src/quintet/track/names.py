"""Names that trackers and file systems accept, one-to-one; the ids of a run in its trackers; and pictures."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from quintet.files import write_text

# Characters of a name in MLflow (mlflow.utils.validation), and of a file name on every file system.
NAME_LENGTH, FILE_LENGTH = 250, 100
_DIGITS = 8


class UsableNames:
    """Maps names to usable ones by ``clean``, one-to-one.

    If two names would get the same usable name, ignoring case as some file systems and databases do, the second one
    gets a digest.
    """

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._usable: dict[Hashable, str] = {}
        self._taken: set[str] = set()

    def of(self, name: str, identity: Hashable = None) -> str:
        """Return the usable name of ``name``, or of its ``identity`` if several things have that name."""
        identity = name if identity is None else identity
        if identity not in self._usable:
            usable = self._clean(name)
            if usable.casefold() in self._taken:
                usable = self._clean(_marked(usable, repr(identity), NAME_LENGTH))
            self._taken.add(usable.casefold())
            self._usable[identity] = usable
        return self._usable[identity]


def usable_name(name: str) -> str:
    """Return ``name`` in a form that MLflow accepts: letters, digits, spaces and ``_ - . : /``, at most 250 characters.

    It is a plain relative path. Each part that had to change ends with a digest, so that ``c#`` and ``c+`` differ.
    """
    parts = [_part(part) for part in name.split("/")]
    if sum(map(len, parts)) + len(parts) - 1 > NAME_LENGTH:
        longest = max(range(len(parts)), key=lambda index: len(parts[index]))
        room = NAME_LENGTH - (sum(map(len, parts)) + len(parts) - 1 - len(parts[longest]))
        if room > 2 * _DIGITS:
            parts[longest] = _marked(parts[longest], name, room)
        else:
            return _marked("/".join(parts), name, NAME_LENGTH)
    return "/".join(parts)


def file_name(name: str) -> str:
    """Return ``name`` as part of a file name on any system, with a digest if it had to change.

    It has ASCII letters and digits, spaces and ``_-.%=+,@#``, at most 100 characters.
    """
    clean = re.sub(r"[^A-Za-z0-9_\-. %=+,@#]", "-", name)
    return clean if clean == name and 0 < len(name) <= FILE_LENGTH else _marked(clean, name, FILE_LENGTH)


def _part(part: str) -> str:
    if part in ("", ".", ".."):
        return "_" * max(len(part), 1)
    clean = re.sub(r"[^\w\-. :]|^\.(?=\.)", "_", part)
    return clean if clean == part else _marked(clean, part, NAME_LENGTH)


def _marked(clean: str, name: str, room: int) -> str:
    """Return ``clean`` with a digest of ``name``, in at most ``room`` characters."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{clean[: room - _DIGITS - 1]}-{digest}"


class RunIds:
    """``tracking.json`` of a run folder: the ids of the run, by tracker and project or server."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tracking.json"

    def get(self, project: str) -> str | None:
        """Return the id in ``project``, None if there is none."""
        return self._read().get(project)

    def set(self, project: str, run_id: str) -> None:
        """Save ``run_id``; a kill leaves the old file or the new one."""
        write_text(self._file, json.dumps(self._read() | {project: run_id}, indent=2))

    def _read(self) -> dict[str, str]:
        return json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}


def picture(png: bytes) -> Any:
    """Return the content of a PNG file as an RGB PIL.Image."""
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")
