"""What a dialect is: a table of its keys, and a few rules for what several keys say together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from quintet.config.dialects.values import Value
from quintet.config.keypath import KeyPath, path_of
from quintet.config.read import YamlDocument
from quintet.config.section import Role

if TYPE_CHECKING:
    from quintet.config.dialects.given import DialectFile
    from quintet.config.dialects.native import NativeBuilder
    from quintet.config.schema import RunConfig

Put = Callable[[str, Any], None]
"""Sets a key of a dialect to the value that a native run file gives it; the key `quintet` is the section of native keys
that a file of every dialect may have."""

SPLIT_MODEL = "a layer, the layers or a sequence split over devices"
"""What is pending, where keys are for it."""

REQUIRED = "required"
"""Default of a key that must be given."""


@dataclass(frozen=True)
class Key:
    """One key of a dialect.

    ``path`` is where the document, or the framework's own files, have it; ``[]`` stands for each element of a list.
    ``aliases`` are other places and spellings of it. A value is read by ``value``; where the key says one thing of the
    run file and nothing else does, it goes ``to`` that native key as it was read, and otherwise the dialect's rules
    make the native keys ``affects`` of it. ``default`` is the document's, `REQUIRED` when the key must be given, None
    when a file without it says nothing of the matter. ``null`` is what null means; None: as if the key were not given.

    ``documented``: the framework's document has it, and not its own files alone. ``no_effect``: why it changes nothing
    here, which the run says; ``refused``: why it cannot be followed; ``pending``: what is still to be built for it,
    where any value but those of ``noop_values`` is refused.
    """

    path: str
    value: Value
    help: str
    to: str = ""
    affects: tuple[str, ...] = ()
    default: Any = None
    aliases: tuple[str, ...] = ()
    documented: bool = True
    null: Any = None
    no_effect: str = ""
    refused: str = ""
    pending: str = ""
    noop_values: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def role(self) -> Role:
        """The key as keys of a schema are."""
        refused = self.refused or (f"{self.pending} is not built yet" if self.pending else "")
        return Role(self.to, self.affects, self.aliases, self.documented, self.no_effect, refused, self.noop_values)

    @property
    def accepts(self) -> str:
        """Type and bounds in words."""
        return self.value.words

    @property
    def as_written(self) -> Any:
        """The default as a file has it."""
        try:
            return self.value.write(self.default)
        except ValueError:
            return self.default

    @property
    def required(self) -> bool:
        """Whether a file must give it."""
        return self.default == REQUIRED

    def write(self, value: Any) -> Any:
        """``value``, as it was read, as a file has it. Raises ValueError where there is no word for it."""
        return self.value.write(value)


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


@dataclass(frozen=True)
class TableDialect:
    """One framework's run files.

    ``shape`` brings older and other nestings of a file into that of the table. ``rules`` set in the native run file
    what several keys say together, and what the framework always does. ``back`` puts into a file of the dialect what
    the table alone cannot of a native config. ``hydra``: its command line has Hydra's grammar. ``stand_in`` are values
    that a file must have, for the check of one that was written from a native config which cannot give them.
    """

    name: str
    title: str
    keys: tuple[Key, ...]
    rules: Callable[[DialectFile, NativeBuilder], None]
    shape: Callable[[YamlDocument], YamlDocument] = lambda document: document
    back: Callable[[RunConfig, Put], None] = lambda config, put: None
    hydra: bool = False
    stand_in: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_pattern(self) -> dict[tuple[str, ...], Key]:
        """Keys by the steps of their path and of each alias."""
        found: dict[tuple[str, ...], Key] = {}
        for key in self.keys:
            for path in (key.path, *key.aliases):
                assert found.setdefault(pattern(path), key) is key, f"{self.name}: {path} is the name of two keys"
        return found

    @cached_property
    def sections(self) -> set[tuple[str, ...]]:
        """The steps of every section and list that holds keys."""
        return {steps[:length] for steps in self.by_pattern for length in range(len(steps))}

    def read(
        self,
        document: YamlDocument,
        purpose: str = "train",
        native: Mapping[str, Any] | None = None,
        variables: Collection[str] = (),
    ) -> DialectFile:
        """``document`` read by the table."""
        from quintet.config.dialects.given import DialectFile

        return DialectFile(self, document, purpose, native, variables)

    def find(self, path: KeyPath) -> Key | None:
        """The key at ``path`` in a file, None when there is none of this name."""
        return self.by_pattern.get(pattern_of(path))

    def key(self, path: str) -> Key:
        """The key ``path``, which the table has."""
        found = self.find(path_of(numbered(path, 0)))
        assert found is not None, f"{self.name} has no key {path}"
        return found
