"""A native run file in the making: values, and for each the key of the dialect that says so."""

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
    """Where `quintet prepare` writes the samples of the training data: as a Hugging Face dataset with `input_ids` and
    `labels`, which are ``ignore_index`` where there is no loss."""

    folder: str
    ignore_index: int


class NativeBuilder:
    """The translation so far. ``notes`` are what its user should know; the run says them. ``prepare_to`` is where
    `quintet prepare` writes to, None for the cache."""

    def __init__(self, given: SchemaFile) -> None:
        self.given = given
        self.values: dict[str, Any] = {}
        self.provenance: dict[KeyPath, Origin] = {(): Origin(given.file)}
        self.notes: list[str] = []
        self.prepare_to: Output | None = None

    def set(self, path: str, value: Any, *keys: str) -> None:
        """Set the native key ``path``, for the reason that the dialect's ``keys`` say so; without keys, because the
        framework always does. A key of the file's own choice that no path can name is refused."""
        if parse(path) is None and keys:
            self.refuse(keys[0], "has a key without a name, or with '.', '[' or ']' in it; none of the trainer's has")
            return
        self._put(path, value, self.given.origin(*keys))

    def has(self, path: str) -> bool:
        """True if the file gives the dialect's key ``path``, be it under another name."""
        return self.given.has(path)

    def within(self, path: str) -> list[str]:
        """The dialect's keys that the file gives inside the section ``path``."""
        return self.given.within(path)

    def refuse(self, path: str, message: str) -> None:
        """Note that what the file says at the dialect's key ``path`` cannot be followed."""
        self.given.refuse(path, message)

    def refused_for(self, reason: str) -> bool:
        """True if a key of the file was refused for the ``reason`` before its rules were asked."""
        return self.given.refused_for(reason)

    def lack(self, path: str, message: str) -> None:
        """Note that what the file names at the dialect's key ``path`` is not on this machine: the file may be right,
        and the translation does without it."""
        self.given.lack(path, message)

    def get(self, path: str, default: Any = None) -> Any:
        """The value that was set at ``path``."""
        found = lookup(self.values, path_of(path))
        return default if found is ABSENT else found

    def clear(self, name: str) -> None:
        """Take back what was set in the section ``name`` at the top."""
        self.values.pop(name, None)
        self.provenance = {path: origin for path, origin in self.provenance.items() if path[:1] != (name,)}

    def say(self, note: str) -> None:
        """Add a note, once."""
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
