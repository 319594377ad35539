"""Dialects: the run files of five other frameworks, a folder for each.

Every folder has the same layout: ``schema.py`` has the sections and keys of a file; ``translate.py`` has the rules for
keys that depend on each other, and the `Dialect`; ``values.py`` has the framework's names of values and what they mean,
if there are many; ``back.py`` translates a native run file back. A key whose `to` names a single native key is
translated both ways by that alone, without code in ``translate.py`` and ``back.py``. A part that does not fit has a
file of its own, ``schema_<part>.py`` or ``translate_<part>.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from quintet.config.dialects.recognise import NAMES, recognised
from quintet.errors import UserError, did_you_mean, nearest

if TYPE_CHECKING:
    from quintet.config.dialects.dialect import Dialect

__all__ = ["NAMES", "detect", "dialect_named"]


@cache
def dialect_named(name: str) -> Dialect:
    """Return the dialect ``name``. Raises UserError, with the names of all dialects, if there is none."""
    if name not in NAMES:
        hint = did_you_mean(nearest(name, NAMES), quoted=False) or ";"
        raise UserError(f"--dialect {name}: unknown{hint} the dialects are {', '.join(NAMES)}")
    return import_module(f"quintet.config.dialects.{name}.translate").DIALECT


def detect(values: Mapping[str, Any]) -> Dialect | None:
    """Return the dialect that the keys of ``values`` belong to, None for a native run file.

    Raises UserError if they could belong to two.
    """
    names = recognised(values)
    if len(names) > 1:
        raise UserError(f"the file has keys of {' and '.join(names)}; choose one with --dialect")
    return dialect_named(names[0]) if names else None
