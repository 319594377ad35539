"""A dialect's file read by its table: which keys it gives, what their values mean, and everything wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from quintet.config.dialects.table import REQUIRED, Key, TableDialect, numbered, pattern, pattern_of
from quintet.config.keypath import ABSENT, KeyPath, lookup, path_of, show
from quintet.config.provenance import Origin, Problem, place_of, shown
from quintet.config.read import YamlDocument
from quintet.errors import nearest


class DialectFile:
    """The keys of one file, or of several merged, as ``dialect`` reads them.

    ``given["model.n_layer"]`` is the value that was read, or the document's default where the file has none; inside
    lists the index is written, ``given["dataset[0].seq_len"]``. All mistakes are collected in ``problems``. ``purpose``
    is what the file is read for, "train" or "prepare". ``native`` are the native values of the file's section
    `quintet:`; a key that is pending is not refused where they say all the native keys of its ``affects``.
    """

    def __init__(
        self,
        dialect: TableDialect,
        document: YamlDocument,
        purpose: str = "train",
        native: Mapping[str, Any] | None = None,
        variables: Collection[str] = (),
    ) -> None:
        self.dialect, self.document, self.purpose = dialect, document, purpose
        self.native, self.variables = native or {}, variables
        self.file = document.places[()].file
        self.problems: list[Problem] = []
        self._values: dict[KeyPath, Any] = {}
        self._places: dict[KeyPath, Origin] = {}
        self._pending: dict[str, list[KeyPath]] = {}
        self._read(document.values, ())
        self._refuse_pending()
        self._require()

    def __getitem__(self, path: str) -> Any:
        steps = path_of(path)
        key = self.dialect.find(steps)
        assert key is not None, f"{self.dialect.name} has no key {path}"
        default = None if key.default == REQUIRED else key.default
        return self._values.get(_with_indices(key, steps), default)

    @property
    def theirs(self) -> DialectFile:
        """What the dialect's rules read."""
        return self

    def default(self, path: str) -> Any:
        """The default of the key ``path``, None where it has none."""
        key = self.dialect.key(path)
        return None if key.required else key.default

    def has(self, path: str) -> bool:
        """Whether the file gives the key ``path``, be it under another name."""
        return path_of(path) in self._values

    def within(self, path: str) -> list[str]:
        """The keys that the file gives inside the section ``path``."""
        steps = path_of(path)
        return [show(known) for known in self._values if known[: len(steps)] == steps]

    def count(self, path: str) -> int:
        """How many elements the list ``path`` has in the file."""
        steps = path_of(path)
        indices = {known[len(steps)] for known in self._values if known[: len(steps)] == steps}
        value = lookup(self.document.values, steps)
        return max(len(indices), len(value) if isinstance(value, list) else 0)

    def place(self, *paths: str) -> Origin:
        """Where the first of ``paths`` that the file gives is written; a place that says so when it gives none."""
        given = [path for path in paths if self.has(path)]
        names = ", ".join(paths)
        if given:
            found = self._places[path_of(given[0])]
            if len(given) == 1:
                return found
            return Origin(found.file, found.line, ", ".join([found.key, *given[1:]]))
        return Origin(self.file, None, f"{self.dialect.name}'s default: {names}" if names else self.dialect.name)

    def refuse(self, path: str, message: str) -> None:
        """Note that what the file says at ``path`` cannot be followed."""
        steps = path_of(path)
        place = self._places.get(steps) or place_of(steps, self.document.places)
        self.problems.append(Problem(place, place.key or path, message))

    def items(self) -> Iterator[tuple[Key, KeyPath, Any]]:
        """Every key that the file gives, with its path in the table's nesting and its value."""
        for path, value in self._values.items():
            key = self.dialect.find(path)
            assert key is not None
            yield key, path, value

    def _read(self, value: Any, path: KeyPath) -> None:
        """Read what the file has at ``path``: a key, or a section of them."""
        key = self.dialect.find(path)
        if key is not None:
            self._read_key(key, value, path)
        elif isinstance(value, dict) and self._is_section(path):
            for name, inner in value.items():
                self._read(inner, (*path, name))
        elif isinstance(value, list) and self._is_section((*path, 0)):
            for index, inner in enumerate(value):
                self._read(inner, (*path, index))
        elif value is None and self._is_section(path):
            return
        elif len(path) == 1 and path[0] in self.variables:
            return  # a name that other values were written with
        else:
            self._problem(path, self._unknown(path))

    def _is_section(self, path: KeyPath) -> bool:
        return pattern_of(path) in self.dialect.sections

    def _read_key(self, key: Key, value: Any, path: KeyPath) -> None:
        known = _with_indices(key, path)
        if value is None:
            if key.null is None:
                return
            read = key.null
        elif key.refused:
            self._problem(path, key.refused)
            return
        else:
            try:
                read = key.value.read(value)
            except ValueError as error:
                self._problem(path, f"{error}, found {shown(value)}")
                return
        if key.pending and read not in key.noop_values and not self.is_replaced(key):
            if key.noop_values:
                self._problem(path, f"{key.pending} is not built yet{_idle(key)}")
            else:
                self._pending.setdefault(key.pending, []).append(path)
            return
        before = self._values.get(known, ABSENT)
        if before is not ABSENT and before != read:
            other = self._places[known]
            self._problem(path, f"says {shown(value)}, and {other.key} (line {other.line}) says otherwise; keep one")
            return
        place = place_of(path, self.document.places)
        self._values[known] = read
        self._places[known] = Origin(place.file, place.line, show(path), value is True)

    def is_replaced(self, key: Key) -> bool:
        """Whether the section `quintet:` says all the native keys that ``key`` has a say in."""
        return bool(key.affects) and all(lookup(self.native, path_of(path)) is not ABSENT for path in key.affects)

    def _refuse_pending(self) -> None:
        """One line for each thing that is not built yet and that the file cannot do without."""
        for pending, (first, *others) in self._pending.items():
            key = self.dialect.find(first)
            verb = "needs" if len(others) == 1 else "need"
            more = f"; {', '.join(map(show, others))} {verb} it, too" if others else ""
            mend = f"; without it, `quintet:` must say {' and '.join(key.affects)}" if key and key.affects else ""
            self._problem(first, f"{pending} is not built yet{more}{mend}")

    def _require(self) -> None:
        """Every key that must be given is there, in each element of a list too."""
        tried = {problem.key for problem in self.problems}
        for key in self.dialect.keys:
            if key.default != REQUIRED:
                continue
            list_path, inside, _ = key.path.partition("[]")
            for path in [numbered(key.path, i) for i in range(self.count(list_path) if inside else 1)]:
                if not self.has(path) and tried.isdisjoint((path, *key.aliases)):
                    place = place_of(path_of(path)[:-1], self.document.places)
                    self.problems.append(Problem(place, path, f"is missing: {key.help}"))

    def _problem(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(place_of(path, self.document.places), show(path), message))

    def _unknown(self, path: KeyPath) -> str:
        """What to say of a key that the dialect does not have."""
        steps = pattern_of(path)
        if steps in self.dialect.sections:
            return "must be a section of keys and values"
        around, name = steps[:-1], steps[-1]
        beside = [known[len(around)] for known in self.dialect.by_pattern if known[: len(around)] == around]
        beside = [other for other in dict.fromkeys(beside) if other != "[]"]
        like = nearest(name, beside)
        if like is not None:
            return f"unknown key {name!r}; did you mean {like!r}?"
        everywhere = {known[-1]: key.path for known, key in reversed(self.dialect.by_pattern.items())}
        like = nearest(name, everywhere)
        if like is not None:
            return f"unknown key {name!r}; did you mean {everywhere[like]}?"
        lists = f"`quintet explain --dialect {self.dialect.name}` lists the keys"
        return f"unknown key {name!r}; {self.dialect.title} has none like it; {lists}"


def _with_indices(key: Key, path: KeyPath) -> KeyPath:
    """The path of ``key`` in the table's nesting, with the list indices of ``path``; an alias outside of a list means
    the list's first element."""
    indices = [step for step in path if isinstance(step, int)]
    return tuple((indices.pop(0) if indices else 0) if step == "[]" else step for step in pattern(key.path))


def _idle(key: Key) -> str:
    """What may be written instead of a value that is pending."""
    words = []
    for value in key.noop_values:
        try:
            words.append(shown(key.value.write(value)))
        except ValueError:
            continue
    return f"; {' or '.join(words)} is accepted" if words else ""
