"""The one family of errors that a user can mend.

Anything else that reaches the top is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, where, and what to do, in one sentence a problem.

    The command line prints each problem on its own line and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@contextmanager
def named(where: str) -> Iterator[None]:
    """Within, the problems of a UserError get the key or option ``where`` in front, if they do not begin with it."""
    try:
        yield
    except UserError as error:
        found = (problem.removeprefix("text: ") for problem in error.problems)
        raise UserError(*(one if one.startswith(where) else f"{where}: {one}" for one in found)) from error
