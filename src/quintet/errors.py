"""The one family of errors that a user can mend.

Anything else that reaches the top is a bug and shows its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, where, and what to do, in one sentence a problem.

    The command line prints each problem on its own line and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
