"""A dialect: a schema, as native run files have one, and rules for keys that depend on each other."""

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
    from quintet.config.dialects.native import NativeBuilder
    from quintet.config.schema import RunConfig


Put = Callable[[str, Any], None]
"""Sets a key of a dialect to the value of a native run file; the key `quintet` is the section of native keys."""


def pattern(path: str) -> tuple[str, ...]:
    """Return the steps of ``path``: ("dataset", "[]", "seq_len") for "dataset[].seq_len"."""
    return tuple(path.replace("[]", ".[]").split("."))


def pattern_of(path: KeyPath) -> tuple[str, ...]:
    """Return the pattern of ``path``, which has "[]" for each index of a list."""
    # A section given on the command line may have keys of any type.
    return tuple("[]" if isinstance(step, int) else str(step) for step in path)


def numbered(path: str, index: int) -> str:
    """Return ``path`` with ``index`` in its "[]"."""
    return path.replace("[]", f"[{index}]")


class DialectSection(ConfigSection):
    """Base of every section of a dialect, where a switch is only true or false, and no text or number for them."""

    model_config = ConfigDict(protected_namespaces=())
    translates = True

    @classmethod
    def _plain(cls, field: Any, value: Any) -> Any:
        types = {accepted for accepted, _ in alternatives(field.annotation)} - {NoneType}
        if types == {bool} and not isinstance(value, bool | None):
            return [value]  # which pydantic refuses; the message shows what the file has
        metadata = [item for _, items in alternatives(field.annotation, field.metadata) for item in items]
        reads_itself = any(isinstance(item, Value | Before) for item in metadata)
        return value if reads_itself else super()._plain(field, value)


@dataclass(frozen=True)
class Dialect:
    """The run files of one framework.

    - ``schema`` is the typed form of a file. A key whose `to` names a native key is translated by that alone.
    - ``normalize`` moves the keys of a file to their places in the schema, where aliases are not enough.
    - ``rules(theirs, native)`` sets in ``native`` what several keys of the file ``theirs`` decide together, and what
      the framework always does.
    - ``back(config, put)`` writes the keys that several native keys decide together.
    - ``writes(config, key)`` is True if the file of ``config`` gets ``key``, which has `to`.
    - ``applies(values, key)`` is False if files such as ``values`` do not have ``key``; then its default is not set.
    - ``hydra`` is True if overrides on the command line have Hydra's grammar.
    - ``stand_in`` has a value for each required key, so that a file that lacks one can be checked for other mistakes.
    """

    name: str
    title: str
    schema: type[ConfigSection]
    rules: Callable[[Any, NativeBuilder], None]
    normalize: Callable[[YamlDocument], YamlDocument] = lambda document: document
    back: Callable[[RunConfig, Put], None] = lambda config, put: None
    writes: Callable[[RunConfig, KeyInfo], bool] = lambda config, key: bool(key.role.documented)
    applies: Callable[[Mapping[str, Any], KeyInfo], bool] = lambda values, key: True
    hydra: bool = False
    stand_in: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def top(self) -> Section:
        """The whole file as a section."""
        return section_of(self.schema)

    @cached_property
    def keys(self) -> tuple[KeyInfo, ...]:
        """The keys that hold a value, in order."""
        return tuple(key for key in walk(self.top) if not key.kinds)

    @cached_property
    def by_pattern(self) -> dict[tuple[str, ...], KeyInfo]:
        """The keys by the pattern of their path and of each alias, also without "[]" for a section outside a list."""
        keys: dict[tuple[str, ...], KeyInfo] = {}
        for key in self.keys:
            paths = (key.path, *key.aliases)
            for path in dict.fromkeys((*paths, *(path.replace("[]", "") for path in paths))):
                assert keys.setdefault(pattern(path), key) is key, f"{self.name}: {path} is the name of two keys"
        return keys

    @cached_property
    def sections(self) -> set[tuple[str, ...]]:
        """The patterns of all sections and lists that hold keys, under any of their paths."""
        return {steps[:length] for steps in self.by_pattern for length in range(len(steps))}

    @cached_property
    def own_sections(self) -> dict[tuple[str, ...], Section]:
        """The sections of the schema by the pattern of their path."""
        return {(): self.top} | {pattern(key.path): key.kinds[""] for key in walk(self.top) if key.kinds}

    @cached_property
    def shorthands(self) -> dict[tuple[str, ...], str]:
        """The key that a single value stands for, by the pattern of each path of a section that has such a key."""
        return {
            pattern(path): section.shorthand
            for section in self.own_sections.values()
            if section.shorthand
            for path in (section.path, *filter(None, section.nestings))
        }

    def find(self, path: KeyPath) -> KeyInfo | None:
        """Return the key at ``path`` of a file, None if there is none."""
        return self.by_pattern.get(pattern_of(path))

    def key(self, path: str) -> KeyInfo:
        """Return the key ``path``, which the schema has."""
        key = self.find(path_of(numbered(path, 0)))
        assert key is not None, f"{self.name} has no key {path}"
        return key
