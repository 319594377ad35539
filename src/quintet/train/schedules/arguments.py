"""Arguments of a run file for a function of another library: known, complete, and of the kind that it takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from quintet.errors import UserError, one_line


def check_arguments(
    where: str, name: str, function: Callable[..., Any], given: Mapping[str, Any], ours: Mapping[str, str]
) -> None:
    """Raise UserError with every argument in ``given`` that ``function`` does not take or that lacks.

    ``where`` is the key path of the arguments and ``name`` what the user calls the function. ``ours`` are arguments
    that do not belong there, each with the reason; "" where a run file has no say.
    """
    parameters = inspect.signature(function).parameters
    known = [one for one in parameters if one not in ours and one != "self"]
    problems = [f"{where}.{one}: {_refusal(one, name, known, ours)}" for one in given if one not in known]
    required = [one for one in known if parameters[one].default is inspect.Parameter.empty]
    missing = [one for one in required if one not in given]
    if missing:
        problems.append(f"{where}: {name} needs {', '.join(missing)}")
    if problems:
        raise UserError(*problems)


def check_name(where: str, name: str, known: Collection[str], of: str) -> None:
    """Raise UserError when ``name`` is none of ``known``, the names that ``of`` has."""
    if name in known:
        return
    lowered = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    hint = f"did you mean {lowered[close[0]]}? " if close else ""
    raise UserError(f"{where}: {of} has no {name!r} for a run; {hint}there are {', '.join(known)}")


@contextmanager
def refusals_of(where: str, name: str) -> Iterator[None]:
    """What ``name`` of another library refuses within, as a UserError about ``where``."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError, AttributeError, KeyError) as error:
        raise UserError(f"{where}: {name} refuses them: {one_line(error)}") from error


def _refusal(argument: str, name: str, known: list[str], ours: Mapping[str, str]) -> str:
    if ours.get(argument):
        return ours[argument]
    close = difflib.get_close_matches(argument, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} has no such argument; {hint}it has {', '.join(known) or 'none'}"
