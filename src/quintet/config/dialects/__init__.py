"""Dialects: the run files of five other frameworks, each a schema of keys and how they translate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from quintet.config.dialects.recognise import NAMES, recognised
from quintet.errors import UserError, nearest

if TYPE_CHECKING:
    from quintet.config.dialects.dialect import Dialect

__all__ = ["NAMES", "detect", "dialect_named"]


@cache
def dialect_named(name: str) -> Dialect:
    """The dialect ``name``. Raises UserError with the names that there are."""
    if name not in NAMES:
        like = nearest(name, NAMES)
        meant = f"did you mean {like}? " if like else ""
        raise UserError(f"--dialect {name}: unknown; {meant}the dialects are {', '.join(NAMES)}")
    return import_module(f"quintet.config.dialects.{name}.translate").DIALECT


def detect(values: Mapping[str, Any]) -> Dialect | None:
    """The dialect that the keys of a file are of, None for a native run file.

    Raises UserError when they could be of two.
    """
    found = recognised(values)
    if len(found) > 1:
        raise UserError(f"the file has keys of {' and '.join(found)}; say which it is with --dialect")
    return dialect_named(found[0]) if found else None
