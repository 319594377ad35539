"""Dialects: the run files of five other frameworks, each a table of keys and how they translate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from quintet.config.dialects.table import Dialect
from quintet.config.spelling import nearest
from quintet.errors import UserError

NAMES = ("phyagi", "vectorlm", "stlm", "tmrc", "piano")


@cache
def dialect_named(name: str) -> Dialect:
    """The dialect ``name``. Raises UserError with the names that there are."""
    if name not in NAMES:
        like = nearest(name, NAMES)
        meant = f"did you mean {like}? " if like else ""
        raise UserError(f"--dialect {name}: unknown; {meant}the dialects are {', '.join(NAMES)}")
    return import_module(f"quintet.config.dialects.{name}").DIALECT


def detect(values: Mapping[str, Any]) -> Dialect | None:
    """The dialect that the keys of a file are of, None for a native run file.

    Raises UserError when they could be of two.
    """
    found = [dialect for dialect in map(dialect_named, NAMES) if dialect.recognise(values)]
    if len(found) > 1:
        names = " and ".join(dialect.name for dialect in found)
        raise UserError(f"the file has keys of {names}; say which it is with --dialect")
    return found[0] if found else None


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The section ``name`` of ``values``, empty where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}
