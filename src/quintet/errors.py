"""The one family of errors that a user can mend, and how their messages are worded.

Anything else that reaches the top is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, where, and what to do, in one sentence a problem.

    The command line prints each problem on its own line and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


NOT_HERE = "not on this machine"


class NotHere(UserError):
    """What a run needs and this machine lacks: files, folders, checkpoints, libraries. Its run file may be right."""


def gathered(checks: Iterable[Callable[[], object]]) -> tuple[list[str], list[str]]:
    """Make all ``checks``: the mistakes that they raise, and what they say is not on this machine."""
    mistakes: list[str] = []
    missing: list[str] = []
    for check in checks:
        try:
            check()
        except NotHere as error:
            missing += error.problems
        except UserError as error:
            mistakes += error.problems
    return mistakes, missing


@contextmanager
def named(where: str) -> Generator[None]:
    """Within, the problems of a UserError get the key or option ``where`` in front, if they do not begin with it."""
    try:
        yield
    except UserError as error:
        found = (problem.removeprefix("text: ") for problem in error.problems)
        kind = NotHere if isinstance(error, NotHere) else UserError
        raise kind(*(one if one.startswith(where) else f"{where}: {one}" for one in found)) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` most likely means; None if it is like none of them.

    Letters in another order are the commonest slip and the one that difflib, which compares runs of letters, misses in
    short names; they go first.
    """
    known = list(known)
    reordered = [one for one in known if sorted(one) == sorted(name)]
    return next(iter(reordered or difflib.get_close_matches(name, known, n=1, cutoff=0.55)), None)


def one_line(error: BaseException, lines: int | None = None, *, typed: bool = False) -> str:
    """The message of ``error`` in one line, without passwords in its addresses; its class if it has no message.

    ``lines``: take only so many of its lines, for libraries whose further lines speak of their own code; a first line
    that ends with a colon takes the second along. ``typed``: put the class in front.
    """
    kind, text = type(error).__name__, str(error)
    if isinstance(error, KeyError) and not typed:
        text = f"no {text}"
    if lines is not None:
        told = [line.strip() for line in text.splitlines() if line.strip()]
        more = lines == 1 and told[:1] and told[0].endswith(":")
        text = " ".join(told[: lines + 1 if more else lines]).rstrip(".")
    said = without_secrets(without_password(" ".join(text.split())))
    return f"{kind}: {said}" if said and typed else said or kind


_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal, turns the direction of a text (Unicode Standard Annex 9), ends a line, or is no character."""


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with each character that steers a terminal as an escape; line ends and tabs too, unless ``lines``.

    >>> printable("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\\\n'
    """
    shown = _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def without_password(text: str) -> str:
    """``text`` with the user and password taken out of its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


MASK = "***"
"""Stands where a secret was."""
_SECRET_NAME = re.compile(
    r"(^|[_.-])(api[_-]?key|access[_-]?key([_-]?id)?|secret([_-].*)?|pass(word|wd|phrase)?|credentials?|signature|"
    r"(auth|access|session|security|hf|hub|bearer|api|personal|use_auth)[_-]?token)$|^token$|^sig$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=[a-z0-9]://)(?!\*\*\*@)[^/@\s]+@", re.IGNORECASE)
_QUERY = re.compile(r"([?&])([\w.-]+)=([^&#\s'\"]+)")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,})\b")
_SHORTEST_SECRET = 8  # characters of a variable's value that is looked for in texts


def is_secret(name: str) -> bool:
    """True if ``name`` is that of a key, an argument or a part of an address that holds a secret."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for the login and the tokens of its addresses, for tokens known by their form, and for the
    values of the environment's variables that are secrets by their names.

    >>> without_secrets("https://me:secret@host/a?token=x&b=1")
    'https://***@host/a?token=***&b=1'
    """
    for name, value in os.environ.items() if len(text) >= _SHORTEST_SECRET else ():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, MASK)
    text = _LOGIN.sub(f"{MASK}@", text)
    if "://" in text:
        text = _QUERY.sub(
            lambda match: f"{match[1]}{match[2]}={MASK if _is_query_secret(match[2]) else match[3]}", text
        )
    return _TOKEN.sub(MASK, text)


def _is_query_secret(name: str) -> bool:
    return is_secret(name) or name.lower().endswith(("-credential", "-signature", "-token")) or name.lower() == "key"
