"""A dialect: a schema, as native run files have one, and the rules for keys that depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from quintet.config.describe import KeyInfo, Section, section_of, walk
from quintet.config.keypath import KeyPath, path_of
from quintet.config.read import YamlDocument
from quintet.config.section import Before, ConfigSection, Value, alternatives

if TYPE_CHECKING:
    from quintet.config.schema import RunConfig


Put = Callable[[str, Any], None]
"""Sets a key of a dialect to the value that a native run file gives it; the key `quintet` is the section of native keys
that a file of every dialect may have."""


def pattern(path: str) -> tuple[str, ...]:
    """``path`` in steps: "dataset[].seq_len" is ("dataset", "[]", "seq_len")."""
    return tuple(path.replace("[]", ".[]").split("."))


def pattern_of(path: KeyPath) -> tuple[str, ...]:
    """The `pattern` that ``path`` in a file is of: "[]" for each index of a list."""
    # A section given on the command line may have keys of any type.
    return tuple("[]" if isinstance(step, int) else str(step) for step in path)


def numbered(path: str, index: int) -> str:
    """``path`` with ``index`` for its "[]"."""
    return path.replace("[]", f"[{index}]")


class DialectSection(ConfigSection):
    """Base of every section of a dialect. A switch is true or false, and not a text or number that means it."""

    model_config = ConfigDict(protected_namespaces=())
    translates = True

    @classmethod
    def _plain(cls, field: Any, value: Any) -> Any:
        accepted = {one for one, _ in alternatives(field.annotation)} - {NoneType}
        if accepted == {bool} and not isinstance(value, bool | None):
            return [value]  # which pydantic refuses; the message shows what the file has
        found = [one for _, metadata in alternatives(field.annotation, field.metadata) for one in metadata]
        special = any(isinstance(one, Value | Before) for one in found)
        return value if special else super()._plain(field, value)


@dataclass(frozen=True)
class Dialect:
    """One framework's run files.

    ``schema`` is the typed form of a file. ``rules(theirs, native)`` set in the `NativeBuilder` what keys say that
    depend on each other, and what the framework always does. ``shape`` brings what aliases cannot say into the nesting
    of the schema. ``back`` puts into a file of the dialect what `to` of its keys cannot; ``writes`` tells which keys it
    can, of those with `to`. ``hydra``: its command line has Hydra's grammar. ``stand_in`` are values of keys that a
    file must have, for the check of the others where these are missing, as in one that was written from a native config
    which cannot give them.
    """

    name: str
    title: str
    schema: type[ConfigSection]
    rules: Callable[[Any, Any], None]
    shape: Callable[[YamlDocument], YamlDocument] = lambda document: document
    back: Callable[[RunConfig, Put], None] = lambda config, put: None
    writes: Callable[[RunConfig, KeyInfo], bool] = lambda config, key: bool(key.role.documented)
    hydra: bool = False
    stand_in: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def top(self) -> Section:
        """The file as a section."""
        return section_of(self.schema)

    @cached_property
    def keys(self) -> tuple[KeyInfo, ...]:
        """Every key that holds a value, in order."""
        return tuple(key for key in walk(self.top) if not key.kinds)

    @cached_property
    def by_pattern(self) -> dict[tuple[str, ...], KeyInfo]:
        """Keys by the steps of their path and of each alias; of a list of sections one may stand by itself."""
        found: dict[tuple[str, ...], KeyInfo] = {}
        for key in self.keys:
            for path in dict.fromkeys(
                spelled for one in (key.path, *key.aliases) for spelled in (one, one.replace("[]", ""))
            ):
                assert found.setdefault(pattern(path), key) is key, f"{self.name}: {path} is the name of two keys"
        return found

    @cached_property
    def sections(self) -> set[tuple[str, ...]]:
        """The steps of every section and list that holds keys, under any of their paths."""
        return {steps[:length] for steps in self.by_pattern for length in range(len(steps))}

    @cached_property
    def own_sections(self) -> dict[tuple[str, ...], Section]:
        """Those of the schema itself, by the steps of their paths."""
        return {(): self.top} | {pattern(key.path): key.kinds[""] for key in walk(self.top) if key.kinds}

    @cached_property
    def shorthands(self) -> dict[tuple[str, ...], str]:
        """The key that a value by itself stands for, by the steps of every path of a section that has one."""
        return {
            pattern(path): section.shorthand
            for section in self.own_sections.values()
            if section.shorthand
            for path in (section.path, *filter(None, section.nestings))
        }

    def find(self, path: KeyPath) -> KeyInfo | None:
        """The key at ``path`` in a file, None when there is none of this name."""
        return self.by_pattern.get(pattern_of(path))

    def key(self, path: str) -> KeyInfo:
        """The key ``path``, which the schema has."""
        found = self.find(path_of(numbered(path, 0)))
        assert found is not None, f"{self.name} has no key {path}"
        return found
