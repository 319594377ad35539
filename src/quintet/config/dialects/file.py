"""A dialect's file: its keys at the paths of the schema, each with its line, read by the schema."""

import copy
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from quintet.config.describe import KeyInfo, Section
from quintet.config.dialects.dialect import Dialect, pattern, pattern_of
from quintet.config.errors import elsewhere, not_a_section, problems_of
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, lookup, parse, path_of, show, walk
from quintet.config.provenance import Origin, Problem, origin_of, shown
from quintet.config.read import YamlDocument
from quintet.config.section import number_in
from quintet.errors import did_you_mean, nearest


class SchemaFile:
    """The keys of one file, or of several merged, as the schema of ``dialect`` reads them.

    ``theirs`` is the file as an object of the schema. If the file has mistakes, they are in ``problems``; ``theirs``
    then has a default or a stand-in for each wrong or missing key, and is None if that is not possible. ``not_here``
    describes the files and libraries that the file names and this machine does not have.

    Keys are named by their path in the schema, with the index in lists: ``model.n_layer``, ``dataset[0].seq_len``.

    ``purpose`` is "train" or "prepare". ``native`` are the native keys in the file's section `quintet:`; a key of the
    file that is not supported is accepted if ``native`` sets all native keys that the key affects. ``variables`` are
    keys at the top of the file that are no keys of the schema, because only interpolations use them.
    """

    def __init__(
        self,
        dialect: Dialect,
        document: YamlDocument,
        purpose: str = "train",
        native: Mapping[str, Any] | None = None,
        variables: Collection[str] = (),
    ) -> None:
        self.dialect, self.document, self.purpose = dialect, document, purpose
        self.native, self.variables = native or {}, variables
        self.file = document.provenance[()].file
        self.problems: list[Problem] = []
        self.not_here: list[Problem] = list(document.not_here)
        self.values: dict[str, Any] = {}  # at the paths of the schema
        self.theirs: Any = None
        self._given: dict[KeyPath, KeyInfo] = {}
        self._refused: set[KeyPath] = set()
        self._stand_in = dict(dialect.stand_in)  # each is used once: it may be refused itself
        self._replaced: set[KeyPath] = set()  # wrong or missing: a default or a stand-in is in their place
        self._by_reason: dict[tuple[str | None, str], list[tuple[Problem, str]]] = {}  # by file and reason, with values
        self._provenance: dict[KeyPath, Origin] = {(): document.provenance[()]}
        self._gather(document.values, ())
        _add_sections(self.values, dialect.top)
        self._validate()
        self._join_problems()

    def default(self, path: str) -> Any:
        """Return the default, as it is read, of the key ``path``, which the file does not give."""
        return self._value(path_of(path))

    def _value(self, path: KeyPath) -> Any:
        """Return the value of ``theirs`` at ``path``."""
        value: Any = self.theirs
        for step in path:
            value = value[step] if isinstance(step, int) else getattr(value, step)
        return value

    def has(self, path: str) -> bool:
        """Return True if the file gives the key ``path``, under any of its names."""
        return path_of(path) in self._given

    def within(self, path: str) -> list[str]:
        """Return the keys that the file gives inside the section ``path``."""
        steps = path_of(path)
        return [show(given) for given in self._given if given[: len(steps)] == steps]

    def origin(self, *paths: str) -> Origin:
        """Return the line of the first of ``paths`` that the file gives; if it gives none, an origin that says so."""
        for path in paths:
            assert self.dialect.find(path_of(path)) is not None, f"{self.dialect.name} has no key {path}"
        given, names = [path for path in paths if self.has(path)], ", ".join(paths)
        if not given:
            return Origin(self.file, None, f"{self.dialect.name}'s default: {names}" if names else self.dialect.name)
        origin = self._provenance[path_of(given[0])]
        return origin if len(given) == 1 else Origin(origin.file, origin.line, ", ".join([origin.key, *given[1:]]))

    def refuse(self, path: str, message: str) -> None:
        """Add a problem of the dialect's key ``path``."""
        steps = path_of(path)
        origin = self._provenance.get(steps) or origin_of(steps, self.document.provenance)
        self.problems.append(Problem(origin, origin.key or path, message))

    def refused_for(self, reason: str) -> bool:
        """Return True if the schema refused a key or a value for ``reason``, which several keys may share."""
        return (self.file, reason) in self._by_reason

    def lack(self, path: str, message: str) -> None:
        """Add what the dialect's key ``path`` names and this machine lacks; the file may be right."""
        if path_of(path) in self._replaced:
            return
        origin = self.origin(path)
        self.not_here.append(Problem(origin, origin.key or path, message))

    def items(self) -> Iterator[tuple[KeyInfo, KeyPath, Any]]:
        """Yield each key that the file gives, with its path in the schema and its value."""
        for path, key in self._given.items():
            yield key, path, self._value(path)

    def _gather(self, value: Any, path: KeyPath) -> None:
        """Bring ``value``, a key or a section at ``path`` of the file, to its path in the schema."""
        key, steps = self.dialect.find(path), pattern_of(path)
        section = self.dialect.own_sections.get(steps)
        if key is not None:
            self._gather_key(key, value, path)
        elif is_mapping(value) and steps in self.dialect.sections:
            for name, inner in value.items():
                self._gather(inner, (*path, name))
        elif is_list(value) and (*steps, "[]") in self.dialect.sections:
            if not value:
                self._put(path, [], path)
            for index, inner in enumerate(value):
                self._put((*path, index), {}, (*path, index))
                self._gather(inner, (*path, index))
        elif (value is None and steps in self.dialect.sections) or (len(path) == 1 and path[0] in self.variables):
            return
        elif steps in self.dialect.shorthands and not isinstance(value, dict | list):
            key = self.dialect.find((*path, self.dialect.shorthands[steps]))
            assert key is not None, path
            self._gather_key(key, value, path)
        elif section is not None or (steps[:-1] in self.dialect.own_sections and steps not in self.dialect.sections):
            self._put(path, value, path)  # the schema refuses it
        else:
            self._refuse_unknown(path)

    def _gather_key(self, key: KeyInfo, value: Any, path: KeyPath) -> None:
        in_schema, role = _with_indices(key, path), key.role
        if value is None:
            if role.null is None:
                return
            value = role.null
        if is_mapping(value):  # on the command line, its keys may be of any type
            value = {str(name): inner for name, inner in value.items()}
        noop = any(value == other and type(value) is type(other) for other in role.noop_values)
        if role.unsupported and not noop and not self._is_native(key):
            reason = role.unsupported
            if role.noop_values:
                reason += f"; {' or '.join(map(shown, role.noop_values))} is accepted"
            if role.affects:
                reason += f"; without it, `quintet:` must set {' and '.join(role.affects)}"
            problem = Problem(origin_of(path, self.document.provenance), show(path), reason)
            self.problems.append(self._with_reason(problem, reason))
            self._refused.add(in_schema)
            return
        before = lookup(self.values, in_schema)
        if in_schema not in self._given:
            self._given[in_schema] = key
            self._put(in_schema, value, path)
        elif _meaning(key, before) != _meaning(key, value):
            other = self._provenance[in_schema]
            message = f"is {shown(value)}, and {other.key} (line {other.line}) is {shown(before)}; keep one"
            self.problems.append(Problem(origin_of(path, self.document.provenance), show(path), message))

    def _with_reason(self, problem: Problem, reason: str | None, value: str = "") -> Problem:
        """Return ``problem``, and remember its ``reason``, which others of the file may share, and the refused
        ``value``, "" if the key itself is refused."""
        if reason is not None:
            self._by_reason.setdefault((problem.origin.file, reason), []).append((problem, value))
        return problem

    def _join_problems(self) -> None:
        """Join all problems of a file with the same reason in one, at the first of their keys."""
        for (_, reason), alike in self._by_reason.items():
            places = {id(problem): index for index, problem in enumerate(self.problems)}
            alike = [(problem, value) for problem, value in alike if id(problem) in places]
            if len(alike) < 2:
                continue
            (first, first_value), *others = sorted(alike, key=lambda item: item[0].origin.line or math.inf)
            names = [
                " ".join(filter(None, (one.key, value, f"(line {one.origin.line})" if one.origin.line else "")))
                for one, value in others
            ]
            message = " ".join(filter(None, (first_value, reason)))
            index = min(places[id(problem)] for problem, _ in alike)
            self.problems[index] = Problem(first.origin, first.key, f"{message}; the same of {', '.join(names)}")
            joined = {id(problem) for problem, _ in alike}
            self.problems = [problem for problem in self.problems if id(problem) not in joined]

    def _is_native(self, key: KeyInfo) -> bool:
        """Return True if the section `quintet:` sets all native keys that ``key`` affects."""
        affects = key.role.affects
        return bool(affects) and all(lookup(self.native, path_of(path)) is not ABSENT for path in affects)

    def _put(self, path: KeyPath, value: Any, written: KeyPath) -> None:
        """Set ``path`` of the schema to ``value``, which is at ``written`` in the file."""
        here: Any = self.values
        for step, following in pairwise(path):
            here = _inside(here, step, [] if isinstance(following, int) else {})
        _inside(here, path[-1], value)
        if value != {}:
            here[path[-1]] = value
        for inner_path, inner in walk(value):
            there = (*written, *inner_path)
            origin = origin_of(there, self.document.provenance)
            self._provenance[(*path, *inner_path)] = Origin(origin.file, origin.line, show(there), inner is True)

    def _refuse_unknown(self, path: KeyPath) -> None:
        """Refuse the key at ``path``, in a section that only a nesting of the files has."""
        steps, name = pattern_of(path), str(path[-1])
        section = steps[:-1]
        names = dict.fromkeys(
            known[len(section)] for known in self.dialect.by_pattern if known[: len(section)] == section
        )
        origin = origin_of(path, self.document.provenance)
        if name in names:
            message = not_a_section(lookup(self.document.values, path))
            self.problems.append(Problem(origin, show(path), message))
            return
        similar = nearest(name, names)
        hint = did_you_mean(similar)
        if not hint:
            known_as = elsewhere(name, misspelt=True, top=self.dialect.top)
            hint = f"; {known_as}" if known_as else f"; {show(path[:-1])} has {', '.join(names)}"
        meant = show((*path[:-1], similar)) if similar else ""
        self.problems.append(Problem(origin, show(path), f"unknown key {name!r}{hint}", meant))

    def _validate(self) -> None:
        """Read the values by the schema and add the problems that it finds, at the keys of the file.

        The values that are right are then read again, without the wrong ones and with a stand-in for each key that a
        file must have.
        """
        first = True
        while self.theirs is None:
            try:
                self.theirs = self.dialect.schema.model_validate(self.values)
            except ValidationError as error:
                refusals = self._refusals(error)
                problems = [problem for path, problem in refusals if path not in self._refused]
                self.problems = (
                    self.problems + problems if first else add_unrelated(self.problems, problems, self.dialect)
                )
                replaced = [self._replace(path) for path, _ in refusals]
                if not any(replaced):
                    return
                first = False

    def _refusals(self, error: ValidationError) -> list[tuple[KeyPath, Problem]]:
        """Return the problems of ``error`` at the keys of the file, each with its path in the schema."""
        refusals: list[tuple[KeyPath, Problem]] = []
        provenance = self._provenance | dict(self.document.provenance)
        for problem in problems_of(error, self.values, provenance, self.dialect.schema):
            path = parse(problem.key) or ()
            origin = self._provenance.get(path) or problem.origin
            key, value = self.dialect.find(path), lookup(self.values, path)
            reason = key.special.why_not(value) if key is not None and key.special is not None else None
            problem = replace(problem, origin=origin, key=origin.key or problem.key)
            refusals.append((path, self._with_reason(problem, reason, shown(value))))
        return refusals

    def _replace(self, path: KeyPath) -> bool:
        """Remove the wrong value at ``path``, or give a missing key its stand-in. Return False if nothing changes."""
        self._replaced.add(path)
        whole = without_indices(path)
        self._given = {given: key for given, key in self._given.items() if not whole or given[: len(whole)] != whole}
        before = copy.deepcopy(self.values)
        if not replace_wrong(self.values, path, self._stand_in):
            return False
        _add_sections(self.values, self.dialect.top)
        return self.values != before


def without_indices(path: KeyPath) -> KeyPath:
    """Return the path of the whole list if ``path`` is that of an element, else ``path``."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return path


def replace_wrong(values: dict[str, Any], path: KeyPath, stand_in: dict[str, Any]) -> bool:
    """Remove the wrong value at ``path`` of ``values``; if there is none, move the key's value from ``stand_in`` there.
    Return False if nothing changes."""
    path = without_indices(path)
    section = lookup(values, path[:-1]) if path else None
    if not is_mapping(section):
        return False
    if path[-1] in section:
        del section[path[-1]]
    elif show(path) in stand_in:
        section[path[-1]] = stand_in.pop(show(path))
    else:
        return False
    return True


def add_unrelated(problems: Sequence[Problem], later: Iterable[Problem], dialect: Dialect | None) -> list[Problem]:
    """Return ``problems`` and those of the ``later`` problems that are not a consequence of them.

    ``problems`` are wrong or missing keys of a file of ``dialect`` (None: a native file). ``later`` were found in
    values that have a default or a stand-in for each of these keys, so a later problem may be about a value that the
    file does not have. It is returned only if it has a place of its own and its message names none of these keys.
    """
    if not problems:
        return list(later)
    keys = {key for problem in problems for key in (problem.key, problem.meant) if key}
    keys |= {re.sub(r"(\[\d+\])+$", "", key) for key in keys}
    if dialect is not None:
        keys |= {known.path for key in keys if (path := parse(key)) and (known := dialect.find(path))}
    names = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(keys))) or '(?!)'})(?!\w)")
    return [*problems, *(new for new in later if _is_unrelated(new, problems, keys) and not names.search(new.message))]


def _is_unrelated(later: Problem, problems: Sequence[Problem], keys: set[str]) -> bool:
    """Return True if ``later`` is at another place than ``problems``, its key is not one of the wrong ``keys``, and its
    message has no word that is the last name of a wrong key in the same section."""
    if later.key in keys or (later.origin.line is None and later.origin.file is not None):
        return False
    for problem in problems:
        same_line = (problem.origin.file, problem.origin.line) == (later.origin.file, later.origin.line)
        if same_line and problem.origin.line is not None and (not problem.key or _overlap(problem.key, later.key)):
            return False
    section = later.key.partition(".")[0]
    names = {key.rpartition(".")[2] for key in keys if key.partition(".")[0] == section}
    return names.isdisjoint(re.findall(r"\w+", later.message))


def _overlap(key: str, other: str) -> bool:
    """Return True if one of the two keys is the other or inside it."""
    shorter, longer = sorted((key, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


def _meaning(key: KeyInfo, value: Any) -> Any:
    """Return what ``key`` reads from ``value``; the value itself if it cannot be read."""
    if key.special is None:
        return number_in(value)
    try:
        return key.special.read(value)
    except ValueError:
        return value


def _inside(around: Any, step: int | str, empty: Any) -> Any:
    """Return the value of ``around`` at ``step``, which becomes ``empty`` if there is none."""
    if is_list(around):
        assert isinstance(step, int)
        around += [{} for _ in range(len(around), step + 1)]
        return around[step]
    return around.setdefault(step, empty)


def _add_sections(values: dict[str, Any], section: Section) -> None:
    """Add each section that ``values`` lack as an empty one, so that the schema names the missing keys inside it."""
    for key in section.keys:
        inner = key.kinds.get("")
        if inner is None:
            continue
        sections = values.get(key.name, []) if key.repeated else [values.setdefault(key.name, {})]
        for value in sections if is_list(sections) else []:
            if is_mapping(value):
                _add_sections(value, inner)


def _with_indices(key: KeyInfo, path: KeyPath) -> KeyPath:
    """Return the path of ``key`` in the schema with the list indices of ``path``; an alias outside a list is for its
    first element."""
    indices = [step for step in path if isinstance(step, int)]
    return tuple((indices.pop(0) if indices else 0) if step == "[]" else step for step in pattern(key.path))
