"""Where values come from, and problems that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.config.keypath import KeyPath
from quintet.errors import NOT_HERE, UserError

_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Origin:
    """A line of a file, counted from 1. File ``None`` is the command line, line ``None`` the file as a whole.

    Where a dialect's file says a value of the run in words of its own, ``key`` is what it calls it, and ``switch``
    whether it is true there.
    """

    file: str | None
    line: int | None = None
    key: str = ""
    switch: bool = False

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return self.short_file if self.line is None else f"{self.short_file}:{self.line}"

    @property
    def short_file(self) -> str:
        """The file, relative to the working directory where it lies in it; "" for the command line."""
        with suppress(ValueError):
            return str(Path(self.file or "").relative_to(Path.cwd())) if self.file else ""
        return self.file or ""


COMMAND_LINE = Origin(None)

Provenance = Mapping[KeyPath, Origin]


@dataclass(frozen=True)
class Original:
    """A run file of a dialect as its user wrote it: the place of each value of the run, and the bytes of each of its
    files, by its path below the folder that they have in common."""

    provenance: Provenance
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Problem:
    """One mistake in a run file: where, at which key (empty when at none), what is wrong and what to do; and the key
    that a misspelt one is probably ``meant`` for."""

    origin: Origin
    key: str
    message: str
    meant: str = ""

    @property
    def not_here(self) -> Problem:
        """The same problem as a line among mistakes, where it is that something is not on this machine."""
        return Problem(self.origin, self.key, f"{self.message} ({NOT_HERE})")

    def in_its_words(self) -> Problem:
        """The same problem with the key that the file uses, where that is another."""
        own = self.origin.key
        if not own or own == self.key:
            return self
        mend = f"; {own}=false turns it off" if self.origin.switch else ""
        native = f" ({self.key} of the run file)" if self.key else ""
        return Problem(self.origin, own, f"{self.message}{mend}{native}")

    def __str__(self) -> str:
        text = f"{self.key}: {self.message}" if self.key else self.message
        return f"{self.origin}: {' '.join(text.splitlines())}"  # what was found may have line breaks in it


class RunFileError(UserError):
    """All mistakes of a run file at once, each also as a `Problem`, sorted by file and line, the command line last; and
    beside them what the file names that is ``not_here``, which is no mistake."""

    def __init__(self, problems: Iterable[Problem], not_here: Iterable[Problem] = ()) -> None:
        self.details = sorted(set(problems), key=_position)
        self.not_here = tuple(not_here)
        super().__init__(*map(str, self.details))
        self.args = ("\n".join([*self.problems, *(f"{NOT_HERE}: {one}" for one in self.not_here)]),)


def _position(problem: Problem) -> tuple[bool, str, int, str, str]:
    origin = problem.origin
    return origin.file is None, origin.file or "", origin.line or 0, problem.key, problem.message


def shown(value: Any) -> str:
    """``value`` as YAML shows it, shortened, for a message that says what was found."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def origin_of(path: KeyPath, provenance: Provenance) -> Origin:
    """The place of ``path``, or of the nearest section around it that is written somewhere."""
    for length in range(len(path), -1, -1):
        if path[:length] in provenance:
            return provenance[path[:length]]
    raise AssertionError("a run file has at least the place of its top")
