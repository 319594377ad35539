"""The origins of values, and problems of a run file at these origins."""

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

    For a value from a dialect's file, ``key`` is its key there, and ``switch`` is True if that key is set to true.
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
        """The file, relative to the working directory if it is inside; "" for the command line."""
        with suppress(ValueError):
            return str(Path(self.file or "").relative_to(Path.cwd())) if self.file else ""
        return self.file or ""


COMMAND_LINE = Origin(None)

Provenance = Mapping[KeyPath, Origin]


@dataclass(frozen=True)
class Original:
    """A dialect's run file as it was written: the origin of each value of the run, and the bytes of its files by their
    paths below their common folder."""

    provenance: Provenance
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Problem:
    """A mistake in a run file: its origin, its key ("" if there is none), what is wrong and what to do, and the key
    that a misspelt key is probably ``meant`` to be."""

    origin: Origin
    key: str
    message: str
    meant: str = ""

    @property
    def not_here(self) -> Problem:
        """The problem, marked as one of this machine only, for a list with mistakes."""
        return Problem(self.origin, self.key, f"{self.message} ({NOT_HERE})")

    def in_its_words(self) -> Problem:
        """Return the problem with the key that the file uses instead of the native key."""
        own = self.origin.key
        if not own or own == self.key:
            return self
        mend = f"; {own}=false turns it off" if self.origin.switch else ""
        native = f" ({self.key} of the run file)" if self.key else ""
        return Problem(self.origin, own, f"{self.message}{mend}{native}")

    def __str__(self) -> str:
        text = f"{self.key}: {self.message}" if self.key else self.message
        return f"{self.origin}: {' '.join(text.splitlines())}"  # values in a message may have line breaks


class RunFileError(UserError):
    """All mistakes of a run file, also as `Problem`s, sorted by file and line, with the command line last; and what the
    file names that is ``not_here``, on this machine, which is not a mistake."""

    def __init__(self, problems: Iterable[Problem], not_here: Iterable[Problem] = ()) -> None:
        self.details = sorted(set(problems), key=_position)
        self.not_here = tuple(not_here)
        super().__init__(*map(str, self.details))
        self.args = ("\n".join([*self.problems, *(f"{NOT_HERE}: {problem}" for problem in self.not_here)]),)


def _position(problem: Problem) -> tuple[bool, str, int, str, str]:
    origin = problem.origin
    return origin.file is None, origin.file or "", origin.line or 0, problem.key, problem.message


def shown(value: Any) -> str:
    """Return ``value`` for a message, as in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def origin_of(path: KeyPath, provenance: Provenance) -> Origin:
    """Return the origin of ``path``, or of the innermost section around it that has one."""
    for length in range(len(path), -1, -1):
        if path[:length] in provenance:
            return provenance[path[:length]]
    raise AssertionError("the top of a run file has an origin")
