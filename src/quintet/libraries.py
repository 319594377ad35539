"""Optional libraries: importing them, and checking the arguments that a run file gives to their functions."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from quintet.errors import NotHere, UserError, did_you_mean, nearest, one_line

_MOST_LISTED = 20  # arguments that a message lists although it names a similar one


def require(module: str, extra: str, what: str, otherwise: str = "") -> ModuleType:
    """Import ``module`` of the optional dependencies ``extra``.

    Raises NotHere if it is not installed: ``what`` needs it; install the extra, or do ``otherwise``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotHere(not_installed(what, extra, (error.name or module).partition(".")[0], otherwise)) from error
    except ImportError as error:
        state = f"cannot be imported ({one_line(error, lines=1)})"
        raise NotHere(not_installed(what, extra, module, otherwise, state)) from error


def check_installed(*modules: str, extra: str, what: str, otherwise: str = "") -> None:
    """Raise NotHere, as `require` does, if one of ``modules`` is not installed, without importing them."""
    if missing := [name for name in modules if not is_installed(name)]:
        raise NotHere(not_installed(what, extra, " and ".join(missing), otherwise))


def not_installed(what: str, extra: str, library: str, otherwise: str = "", state: str = "is not installed") -> str:
    """Return the message that ``what`` needs a ``library`` of ``extra``, and how to install it."""
    other = f", or {otherwise}" if otherwise else ""
    return f"{what} needs {library}, which {state}; pip install 'quintet[{extra}]'{other}"


def is_installed(module: str) -> bool:
    """Return True if the top-level ``module`` is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def check_arguments(
    where: str,
    name: str,
    function: Callable[..., Any] | Collection[str],
    given: Collection[str],
    ours: Mapping[str, str] | None = None,
) -> None:
    """Check the arguments ``given`` that a run file passes to a function of another library.

    ``where`` is the key path of the arguments and ``name`` the user's name for the ``function``, which may be replaced
    by the names of its arguments. ``ours`` are arguments that Quintet sets, each with the reason, or "". Raises
    UserError with all arguments that the function does not have, and all that are missing.
    """
    parameters = inspect.signature(function).parameters if callable(function) else dict.fromkeys(function)
    ours = ours or {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = {key: value for key, value in parameters.items() if value is None or value.kind not in several}
    known = [key for key in single if key not in ours and key != "self"]
    problems = [f"{where}.{key}: {ours.get(key) or _unknown(key, name, known)}" for key in given if key not in known]
    required = [key for key, value in single.items() if value is not None and value.default is inspect.Parameter.empty]
    if missing := [key for key in required if key in known and key not in given]:
        problems.append(f"{where}: {name} needs {', '.join(missing)}")
    if problems:
        raise UserError(*problems)


def check_name(where: str, name: str, known: Collection[str], of: str) -> None:
    """Raise UserError if ``name`` is not one of ``known``, the names that ``of`` has."""
    if name in known:
        return
    lowered = {other.lower(): other for other in known}
    close = nearest(name.lower(), lowered)
    hint = did_you_mean(close and lowered[close], quoted=False)
    listed = "" if close and len(known) > _MOST_LISTED else f" there are {', '.join(known)}"
    raise UserError(f"{where}: {of} has no {name!r} for a run{hint or ';'}{listed}")


@contextmanager
def refusals_of(where: str, name: str) -> Generator[None]:
    """Raise an error of ``name``, a function of another library, as a UserError about ``where``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have their own classes of errors
        raise UserError(f"{where}: {name} refuses them: {one_line(error)}") from error


def _unknown(argument: str, name: str, known: list[str]) -> str:
    close = nearest(argument, known)
    listed = "" if close and len(known) > _MOST_LISTED else f" it has {', '.join(known) or 'none'}"
    return f"{name} has no such argument{did_you_mean(close, quoted=False) or ';'}{listed}"
