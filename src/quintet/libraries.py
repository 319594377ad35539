"""Other libraries: whether they are installed, and whether they take what a run file hands to them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from quintet.errors import NotHere, UserError, nearest, one_line

_MOST_LISTED = 20  # arguments that are listed beside the one that is meant


def require(module: str, extra: str, what: str, otherwise: str = "") -> ModuleType:
    """Import ``module``, which the optional dependencies ``extra`` install.

    Raises NotHere when it is not installed: ``what`` needs it, install the extra, or do ``otherwise``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotHere(not_installed(what, extra, (error.name or module).partition(".")[0], otherwise)) from error
    except ImportError as error:
        state = f"cannot be imported ({one_line(error, lines=1)})"
        raise NotHere(not_installed(what, extra, module, otherwise, state)) from error


def check_installed(*modules: str, extra: str, what: str, otherwise: str = "") -> None:
    """Raise the NotHere of `require` if one of ``modules`` is not installed, importing none of them."""
    if missing := [name for name in modules if not is_installed(name)]:
        raise NotHere(not_installed(what, extra, " and ".join(missing), otherwise))


def not_installed(what: str, extra: str, library: str, otherwise: str = "", state: str = "is not installed") -> str:
    """Say that ``what`` needs a ``library`` of ``extra``, and how to install it."""
    other = f", or {otherwise}" if otherwise else ""
    return f"{what} needs {library}, which {state}; pip install 'quintet[{extra}]'{other}"


def is_installed(module: str) -> bool:
    """True if the top-level ``module`` can be found; it is not imported."""
    return importlib.util.find_spec(module) is not None


def check_arguments(
    where: str,
    name: str,
    function: Callable[..., Any] | Collection[str],
    given: Collection[str],
    ours: Mapping[str, str] | None = None,
) -> None:
    """Check the arguments that a run file gives to a function of another library.

    ``where`` is the key path of the arguments and ``name`` what the user calls the function, which is the ``function``
    itself or the names of its arguments. ``ours`` are arguments that do not belong in a run file, each with the reason;
    "" where a run file has no say. Raises UserError with all of ``given`` that it does not take, and all that it lacks.
    """
    parameters = inspect.signature(function).parameters if callable(function) else dict.fromkeys(function)
    ours = ours or {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = {name: one for name, one in parameters.items() if one is None or one.kind not in several}
    known = [one for one in single if one not in ours and one != "self"]
    problems = [f"{where}.{one}: {ours.get(one) or _unknown(one, name, known)}" for one in given if one not in known]
    required = [name for name, one in single.items() if one is not None and one.default is inspect.Parameter.empty]
    if missing := [one for one in required if one in known and one not in given]:
        problems.append(f"{where}: {name} needs {', '.join(missing)}")
    if problems:
        raise UserError(*problems)


def check_name(where: str, name: str, known: Collection[str], of: str) -> None:
    """Raise UserError when ``name`` is none of ``known``, the names that ``of`` has."""
    if name in known:
        return
    lowered = {one.lower(): one for one in known}
    close = nearest(name.lower(), lowered)
    hint = f"did you mean {lowered[close]}?" if close else ""
    listed = "" if close and len(known) > _MOST_LISTED else f"there are {', '.join(known)}"
    raise UserError(f"{where}: {of} has no {name!r} for a run; {' '.join(filter(None, (hint, listed)))}")


@contextmanager
def refusals_of(where: str, name: str) -> Generator[None]:
    """Raise what ``name`` of another library refuses within as a UserError about ``where``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have classes of their own for what they refuse
        raise UserError(f"{where}: {name} refuses them: {one_line(error)}") from error


def _unknown(argument: str, name: str, known: list[str]) -> str:
    close = nearest(argument, known)
    hint = f"did you mean {close}?" if close else ""
    listed = "" if close and len(known) > _MOST_LISTED else f"it has {', '.join(known) or 'none'}"
    return f"{name} has no such argument; {' '.join(filter(None, (hint, listed)))}"
