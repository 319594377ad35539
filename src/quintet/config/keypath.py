"""Key paths from the top of a run file to a value, and access to nested values by them."""

import re
from collections.abc import Iterator
from typing import Any, TypeGuard

KeyPath = tuple[str | int, ...]
"""Names of keys and indices of list elements, from the top down."""

ABSENT = object()
"""The result of `lookup` if there is no value at a path; null is a value."""

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")


def is_mapping(value: object) -> TypeGuard[dict[Any, Any]]:
    """True for a mapping as YAML and JSON are read."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """True for a list as YAML and JSON are read."""
    return isinstance(value, list)


def is_sequence(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """True for a list as YAML and JSON are read, or for a tuple, as sections keep lists."""
    return isinstance(value, list | tuple)


def show(path: KeyPath) -> str:
    """Return ``path`` as it is written in messages and on the command line.

    >>> show(("data", "sources", 0, "path"))
    'data.sources[0].path'
    """
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def parse(text: str) -> KeyPath | None:
    """Return the path that ``text`` spells, None if it does not spell one.

    >>> parse("data.sources[0].path") == parse("data.sources.0.path") == ("data", "sources", 0, "path")
    True
    """
    text = text.strip()
    if not _PATH.fullmatch(text):
        return None
    return tuple(int(index or name) if index or name.isdecimal() else name for name, index in _STEP.findall(text))


def path_of(text: str) -> KeyPath:
    """Return the path of ``text``, which must spell one."""
    path = parse(text)
    assert path is not None, text
    return path


def lookup(value: Any, path: KeyPath) -> Any:
    """Return the value at ``path`` in nested mappings and lists, `ABSENT` if there is none."""
    for step in path:
        if is_mapping(value):
            value = value.get(step, ABSENT)
        elif is_list(value) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return ABSENT
    return value


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield ``value`` and all values inside it with their paths, from the top down."""
    yield path, value
    if is_mapping(value):
        for name, inner in value.items():
            yield from walk(inner, (*path, name))
    elif is_list(value):
        for index, inner in enumerate(value):
            yield from walk(inner, (*path, index))
