"""Errors that a user can mend, and helpers for their messages.

Any other error that reaches the command line is a bug and shows its traceback.
"""

import difflib
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend, with one sentence per problem: where, what is wrong, and what to do.

    The command line prints each problem on its own line and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


NOT_HERE = "not on this machine"


class NotHere(UserError):
    """Something that a run needs and this machine lacks: a file, folder, checkpoint or library. The run file may be
    right."""


def collect_problems(checks: Iterable[Callable[[], object]]) -> tuple[list[str], list[str]]:
    """Call all ``checks``, and return the mistakes that they raise and lines on what is not on this machine."""
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
    """Within, put the key or option ``where`` in front of the problems of a UserError that do not begin with it."""
    try:
        yield
    except UserError as error:
        problems = [problem.removeprefix("text: ") for problem in error.problems]
        kind = NotHere if isinstance(error, NotHere) else UserError
        named_problems = (text if text.startswith(where) else f"{where}: {text}" for text in problems)
        raise kind(*named_problems) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` most likely means; None if none is similar.

    Names with the same letters in another order come first: this is the most common mistake, and difflib, which
    compares runs of letters, misses it in short names.
    """
    known = list(known)
    reordered = [other for other in known if sorted(other) == sorted(name)]
    return next(iter(reordered or difflib.get_close_matches(name, known, n=1, cutoff=0.55)), None)


def did_you_mean(near: str | None, *, quoted: bool = True) -> str:
    """Return the end of a message that suggests ``near``, a result of `nearest`; "" for None.

    >>> did_you_mean("width")
    "; did you mean 'width'?"
    """
    return f"; did you mean {repr(near) if quoted else near}?" if near else ""


def one_line(error: BaseException, lines: int | None = None, *, typed: bool = False) -> str:
    """Return the message of ``error`` in one line, without secrets; its class if it has no message.

    ``lines`` limits the lines that are used, for libraries whose further lines are about their own code; a single line
    that ends with a colon keeps the next one. ``typed`` puts the class in front.
    """
    kind, text = type(error).__name__, str(error)
    if isinstance(error, KeyError) and not typed:
        text = f"no {text}"
    if lines is not None:
        kept = [line.strip() for line in text.splitlines() if line.strip()]
        more = lines == 1 and kept[:1] and kept[0].endswith(":")
        text = " ".join(kept[: lines + 1 if more else lines]).rstrip(".")
    message = without_secrets(without_password(" ".join(text.split())))
    return f"{kind}: {message}" if message and typed else message or kind


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, change the direction of a text (Unicode Standard Annex 9) or end a line, and
lone surrogates."""


def printable(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with control characters escaped, and line ends and tabs too unless ``lines``.

    >>> printable("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\\\n'
    """
    shown = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def without_password(text: str) -> str:
    """Return ``text`` without the user and password in its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


MASK = "***"
"""Replaces a secret."""
_SECRET_NAME = re.compile(
    r"(^|[_.-])(api[_-]?key|access[_-]?key([_-]?id)?|secret([_-].*)?|pass(word|wd|phrase)?|credentials?|signature|"
    r"(auth|access|session|security|hf|hub|bearer|api|personal|use_auth)[_-]?token)$|^token$|^sig$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=[a-z0-9]://)(?!\*\*\*@)[^/@\s]+@", re.IGNORECASE)
_QUERY = re.compile(r"([?&])([\w.-]+)=([^&#\s'\"]+)")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,})\b")
_SHORTEST_SECRET = 8  # characters of a variable's value from which on it is masked in texts


def is_secret(name: str) -> bool:
    """Return True if ``name`` is the name of a key, argument or part of an address that holds a secret."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Return ``text`` with ``***`` for logins and tokens in addresses, for tokens of a known form, and for the values
    of environment variables whose names say that they are secret.

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
