"""Names that trackers and file systems take, one-to-one; and the ids of a run in its trackers."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from quintet.files import write_text

# What MLflow accepts (mlflow.utils.validation), and every file system, of one part of a path.
NAME_LENGTH, FILE_LENGTH = 250, 100
_DIGITS = 8


class UsableNames:
    """Maps names to usable ones by ``clean``; what two names would share, also on a file system or in a database that
    does not tell capitals from small letters, the first of them keeps, and the other gets a digest of its own."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._found: dict[Hashable, str] = {}
        self._taken: set[str] = set()

    def of(self, name: str, identity: Hashable = None) -> str:
        """The usable name of ``name``, or of the ``identity`` that it spells; always the same."""
        whole = name if identity is None else identity
        if whole not in self._found:
            found = self._clean(name)
            if found.casefold() in self._taken:
                found = self._clean(_marked(found, repr(whole), NAME_LENGTH))
            self._taken.add(found.casefold())
            self._found[whole] = found
        return self._found[whole]


def usable_name(name: str) -> str:
    """``name`` as MLflow accepts it: letters, digits, spaces and ``_ - . : /``, a plain relative path, at most 250
    characters. Each part that had to change ends with a digest of what it was, so that ``c#`` and ``c+`` differ."""
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
    """``name`` as part of the name of a file on any system: letters and digits of ASCII, spaces and ``_-.%=+,@#``, at
    most 100 characters, with a digest where it had to change."""
    clean = re.sub(r"[^A-Za-z0-9_\-. %=+,@#]", "-", name)
    return clean if clean == name and 0 < len(name) <= FILE_LENGTH else _marked(clean, name, FILE_LENGTH)


def _part(part: str) -> str:
    if part in ("", ".", ".."):
        return "_" * max(len(part), 1)
    clean = re.sub(r"[^\w\-. :]|^\.(?=\.)", "_", part)
    return clean if clean == part else _marked(clean, part, NAME_LENGTH)


def _marked(clean: str, name: str, room: int) -> str:
    """``clean`` with a digest of ``name``, in ``room`` characters."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{clean[: room - _DIGITS - 1]}-{digest}"


class RunIds:
    """``tracking.json`` of a run folder: the id of the tracker's run, by tracker and project or server."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tracking.json"

    def get(self, project: str) -> str | None:
        """Return the id in ``project``, None if the run has not been there."""
        return self._read().get(project)

    def set(self, project: str, run_id: str) -> None:
        """Keep ``run_id``; a kill leaves the old file or the new one."""
        write_text(self._file, json.dumps(self._read() | {project: run_id}, indent=2))

    def _read(self) -> dict[str, str]:
        return json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}


def picture(png: bytes) -> Any:
    """The PIL.Image of the content of a PNG file, in three colours."""
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")
