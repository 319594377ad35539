"""Names that trackers and file systems take, one-to-one: different names stay different."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable

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
