"""A native run file under construction: its values, and for each the dialect's key that it follows from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from quintet.config.keypath import ABSENT, KeyPath, is_list, lookup, parse, path_of, walk
from quintet.config.provenance import Origin

if TYPE_CHECKING:
    from quintet.config.dialects.file import SchemaFile


@dataclass(frozen=True)
class Output:
    """The folder that `quintet prepare` writes the training samples to, as a Hugging Face dataset with `input_ids` and
    `labels`, which are ``ignore_index`` where there is no loss."""

    folder: str
    ignore_index: int


class NativeBuilder:
    """The translation of the file ``given`` so far.

    ``notes`` are for the user, and the run prints them. ``prepare_to`` is where `quintet prepare` writes, None for the
    cache.
    """

    def __init__(self, given: SchemaFile) -> None:
        self.given = given
        self.values: dict[str, Any] = {}
        self.provenance: dict[KeyPath, Origin] = {(): Origin(given.file)}
        self.notes: list[str] = []
        self.prepare_to: Output | None = None
        self.has, self.within = given.has, given.within
        self.refuse, self.refused_for, self.lack = given.refuse, given.refused_for, given.lack

    def set(self, path: str, value: Any, *keys: str) -> None:
        """Set the native key ``path``, which follows from the dialect's ``keys``; without keys, the framework always
        does it. Refuse a key of the file's own choice that cannot be part of a path."""
        if parse(path) is None and keys:
            self.refuse(keys[0], "has a key that is empty or has '.', '[' or ']' in it, as no argument has; correct it")
            return
        self._put(path, value, self.given.origin(*keys))

    def get(self, path: str, default: Any = None) -> Any:
        """Return the value that was set at ``path``, ``default`` if there is none."""
        value = lookup(self.values, path_of(path))
        return default if value is ABSENT else value

    def clear(self, name: str) -> None:
        """Remove the top section ``name``."""
        self.values.pop(name, None)
        self.provenance = {path: origin for path, origin in self.provenance.items() if path[:1] != (name,)}

    def say(self, note: str) -> None:
        """Add ``note``, if it is new."""
        if note not in self.notes:
            self.notes.append(note)

    def _put(self, path: str, value: Any, origin: Origin) -> None:
        steps = path_of(path)
        here: Any = self.values
        for position, (step, following) in enumerate(pairwise(steps)):
            inner: Any = [] if isinstance(following, int) else {}
            if is_list(here):
                here += [inner] if step >= len(here) else []
                step = min(step, len(here) - 1)  # an element before it was refused
            else:
                here.setdefault(step, inner)
            self.provenance.setdefault(steps[: position + 1], origin)
            here = here[step]
        if is_list(here):
            here += [value]
        else:
            here[steps[-1]] = value
        for inner_path, _ in walk(value, steps):
            self.provenance[inner_path] = origin
