"""A dialect's file: its keys brought to the paths of the schema, each with its line, and read by the schema."""

from __future__ import annotations

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
from quintet.errors import nearest


class SchemaFile:
    """The keys of one file, or of several merged, as the schema of ``dialect`` reads them.

    ``theirs`` is the file as an object of the schema; its mistakes are collected in ``problems``, and where they leave
    keys that are right, it is these alone, with a stand-in of ``dialect`` for each that a file must have, else None.
    Keys are named by their path in the schema, ``model.n_layer``, inside lists with the index, ``dataset[0].seq_len``.
    ``purpose`` is what the file is read for, "train" or "prepare". ``native`` are the native values of the file's
    section `quintet:`; a key that is unsupported is not refused where they say all the native keys of its ``affects``.
    ``variables`` are names at the top that other values were written with, and ``not_here`` tells what the file names
    and this machine lacks.
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
        self._stand_in = dict(dialect.stand_in)  # each helps once: it may be refused itself
        self._replaced: set[KeyPath] = set()  # what was wrong or missing: a default or a stand-in is there
        self._alike: dict[tuple[str | None, str], list[tuple[Problem, str]]] = {}  # by reason, with the values
        self._provenance: dict[KeyPath, Origin] = {(): document.provenance[()]}
        self._gather(document.values, ())
        _fill(self.values, dialect.top)
        self._validate()
        self._join_alike()

    def default(self, path: str) -> Any:
        """The default of the key ``path``, which the file does not give, as it is read."""
        return self._value(path_of(path))

    def _value(self, path: KeyPath) -> Any:
        """The value of ``theirs`` at ``path``."""
        value: Any = self.theirs
        for step in path:
            value = value[step] if isinstance(step, int) else getattr(value, step)
        return value

    def has(self, path: str) -> bool:
        """True if the file gives the key ``path``, be it under another name."""
        return path_of(path) in self._given

    def within(self, path: str) -> list[str]:
        """The keys that the file gives inside the section ``path``."""
        steps = path_of(path)
        return [show(known) for known in self._given if known[: len(steps)] == steps]

    def origin(self, *paths: str) -> Origin:
        """Where the first of ``paths`` that the file gives is written; a place that says so when it gives none."""
        for path in paths:
            assert self.dialect.find(path_of(path)) is not None, f"{self.dialect.name} has no key {path}"
        given = [path for path in paths if self.has(path)]
        names = ", ".join(paths)
        if given:
            found = self._provenance[path_of(given[0])]
            if len(given) == 1:
                return found
            return Origin(found.file, found.line, ", ".join([found.key, *given[1:]]))
        return Origin(self.file, None, f"{self.dialect.name}'s default: {names}" if names else self.dialect.name)

    def refuse(self, path: str, message: str) -> None:
        """Note that what the file says at ``path`` cannot be followed."""
        steps = path_of(path)
        origin = self._provenance.get(steps) or origin_of(steps, self.document.provenance)
        self.problems.append(Problem(origin, origin.key or path, message))

    def refused_for(self, reason: str) -> bool:
        """True if a key or the value of one was refused for the ``reason``, which several may have."""
        return (self.file, reason) in self._alike

    def lack(self, path: str, message: str) -> None:
        """Note that what the file names at ``path`` is not on this machine."""
        if path_of(path) in self._replaced:
            return
        origin = self.origin(path)
        self.not_here.append(Problem(origin, origin.key or path, message))

    def items(self) -> Iterator[tuple[KeyInfo, KeyPath, Any]]:
        """Every key that the file gives, with its path in the schema and its value."""
        for path, key in self._given.items():
            yield key, path, self._value(path)

    def _gather(self, value: Any, path: KeyPath) -> None:
        """Bring what the file has at ``path``, a key or a section of them, to its path in the schema."""
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
            self._put(path, value, path)  # the schema says what is wrong with it
        else:
            self._refuse_stray(path)

    def _gather_key(self, key: KeyInfo, value: Any, path: KeyPath) -> None:
        known, role = _with_indices(key, path), key.role
        if value is None:
            if role.null is None:
                return
            value = role.null
        if is_mapping(value):  # one of the command line may have keys of any type
            value = {str(name): inner for name, inner in value.items()}
        noop = any(value == one and type(value) is type(one) for one in role.noop_values)
        if role.unsupported and not noop and not self._is_replaced(key):
            mend = f"; {' or '.join(map(shown, role.noop_values))} is accepted" if role.noop_values else ""
            mend += f"; without it, `quintet:` must say {' and '.join(role.affects)}" if role.affects else ""
            reason = role.unsupported + mend
            problem = Problem(origin_of(path, self.document.provenance), show(path), reason)
            self.problems.append(self._note(problem, reason))
            self._refused.add(known)
            return
        before = lookup(self.values, known)
        if known in self._given and _meaning(key, before) != _meaning(key, value):
            other = self._provenance[known]
            message = f"says {shown(value)}, and {other.key} (line {other.line}) says otherwise; keep one"
            self.problems.append(Problem(origin_of(path, self.document.provenance), show(path), message))
        elif known not in self._given:
            self._given[known] = key
            self._put(known, value, path)

    def _note(self, problem: Problem, reason: str | None, value: str = "") -> Problem:
        """``problem``, noted as one for a ``reason`` that others of the file may have too; it is with a key, or with
        the ``value`` of one."""
        if reason is not None:
            self._alike.setdefault((problem.origin.file, reason), []).append((problem, value))
        return problem

    def _join_alike(self) -> None:
        """Make one line of all problems of a file for the same reason, at the first of its keys."""
        for (_, reason), noted in self._alike.items():
            places = {id(problem): index for index, problem in enumerate(self.problems)}
            alike = [(problem, value) for problem, value in noted if id(problem) in places]
            if len(alike) < 2:
                continue
            (first, said), *others = sorted(alike, key=lambda one: one[0].origin.line or math.inf)
            also = [
                " ".join(filter(None, (one.key, value, f"(line {one.origin.line})" if one.origin.line else "")))
                for one, value in others
            ]
            told = " ".join(filter(None, (said, reason)))
            index = min(places[id(problem)] for problem, _ in alike)
            self.problems[index] = Problem(first.origin, first.key, f"{told}; the same of {', '.join(also)}")
            gone = {id(problem) for problem, _ in alike}
            self.problems = [problem for problem in self.problems if id(problem) not in gone]

    def _is_replaced(self, key: KeyInfo) -> bool:
        """True if the section `quintet:` says all the native keys that ``key`` has a say in."""
        affects = key.role.affects
        return bool(affects) and all(lookup(self.native, path_of(path)) is not ABSENT for path in affects)

    def _put(self, path: KeyPath, value: Any, written: KeyPath) -> None:
        """Set ``value`` at ``path`` of the schema, which the file has at ``written``."""
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

    def _refuse_stray(self, path: KeyPath) -> None:
        """Note a key that no section has, where the file has keys in another nesting."""
        steps, name = pattern_of(path), str(path[-1])
        around = steps[:-1]
        beside = [known[len(around)] for known in self.dialect.by_pattern if known[: len(around)] == around]
        origin = origin_of(path, self.document.provenance)
        if name in beside:
            message = not_a_section(lookup(self.document.values, path))
            self.problems.append(Problem(origin, show(path), message))
            return
        like = nearest(name, dict.fromkeys(beside))
        known_as = elsewhere(name, misspelt=True, top=self.dialect.top)
        mend = (
            f"did you mean {like!r}?"
            if like
            else known_as or f"{show(path[:-1])} has {', '.join(dict.fromkeys(beside))}"
        )
        meant = show((*path[:-1], like)) if like else ""
        self.problems.append(Problem(origin, show(path), f"unknown key {name!r}; {mend}", meant))

    def _validate(self) -> None:
        """Read the values by the schema, and note what it refuses, at the keys as they are written; what is right is
        then read without that, and with a stand-in for each key that a file must have."""
        tried = False
        while self.theirs is None:
            try:
                self.theirs = self.dialect.schema.model_validate(self.values)
            except ValidationError as error:
                found = self._refusals(error)
                told = [problem for path, problem in found if path not in self._refused]
                self.problems = (
                    with_those_that_follow(self.problems, told, self.dialect) if tried else self.problems + told
                )
                replaced = [self._replace(path) for path, _ in found]
                if not any(replaced):
                    return
                tried = True

    def _refusals(self, error: ValidationError) -> list[tuple[KeyPath, Problem]]:
        """Each problem of ``error``, named as the file has its key, with its path in the schema."""
        found: list[tuple[KeyPath, Problem]] = []
        provenance = self._provenance | dict(self.document.provenance)
        for problem in problems_of(error, self.values, provenance, self.dialect.schema):
            path = parse(problem.key) or ()
            origin = self._provenance.get(path) or problem.origin
            key, value = self.dialect.find(path), lookup(self.values, path)
            reason = key.special.why_not(value) if key is not None and key.special is not None else None
            wrong = replace(problem, origin=origin, key=origin.key or problem.key)
            found.append((path, self._note(wrong, reason, shown(value))))
        return found

    def _replace(self, path: KeyPath) -> bool:
        """Forget the value at ``path``, which is wrong; where there is none, put there the stand-in for a key that a
        file must have. False if nothing changes."""
        self._replaced.add(path)
        whole = whole_value(path)
        self._given = {known: key for known, key in self._given.items() if not whole or known[: len(whole)] != whole}
        before = copy.deepcopy(self.values)
        if not leave_out(self.values, path, self._stand_in):
            return False
        _fill(self.values, self.dialect.top)
        return self.values != before


def whole_value(path: KeyPath) -> KeyPath:
    """The path of the whole list where ``path`` is that of an element of one."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return path


def leave_out(values: dict[str, Any], path: KeyPath, stand_in: dict[str, Any]) -> bool:
    """Forget what ``values`` have at ``path``, which is wrong, or where they have nothing put there what ``stand_in``
    has for that key, and take it from there. Returns False if nothing changes."""
    path = whole_value(path)
    around = lookup(values, path[:-1]) if path else None
    if not is_mapping(around):
        return False
    if path[-1] in around:
        del around[path[-1]]
    elif show(path) in stand_in:
        around[path[-1]] = stand_in.pop(show(path))
    else:
        return False
    return True


def with_those_that_follow(
    problems: Sequence[Problem], later: Iterable[Problem], dialect: Dialect | None
) -> list[Problem]:
    """``problems`` of a file of ``dialect``, None for a native one, and those that were found ``later`` in what they
    left of it: of these only what stands at a place of its own and names none of the keys that are wrong or missing,
    for a default or a stand-in is in their place."""
    if not problems:
        return list(later)
    keys = {key for problem in problems for key in (problem.key, problem.meant) if key}
    keys |= {re.sub(r"(\[\d+\])+$", "", key) for key in keys}
    if dialect is not None:
        keys |= {known.path for key in keys if (path := parse(key)) and (known := dialect.find(path))}
    whole = [re.escape(key) for key in sorted(keys)]
    named = re.compile(rf"(?<![\w.])(?:{'|'.join(whole) or '(?!)'})(?!\w)")
    return [*problems, *(one for one in later if _stands(one, problems, keys) and not named.search(one.message))]


def _stands(one: Problem, problems: Sequence[Problem], keys: set[str]) -> bool:
    """True if ``one`` has a place of its own, and neither its key nor the key that its message calls by its last name,
    as one of the same section, is one of the ``keys`` that are wrong."""
    if one.key in keys or (one.origin.line is None and one.origin.file is not None):
        return False
    for told in problems:
        same_line = (told.origin.file, told.origin.line) == (one.origin.file, one.origin.line)
        if same_line and told.origin.line is not None and (not told.key or _around(told.key, one.key)):
            return False
    section = one.key.partition(".")[0]
    near = {key.rpartition(".")[2] for key in keys if key.partition(".")[0] == section}
    return near.isdisjoint(re.findall(r"\w+", one.message))


def _around(key: str, other: str) -> bool:
    """True if one of the two keys stands inside the other."""
    shorter, longer = sorted((key, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


def _meaning(key: KeyInfo, value: Any) -> Any:
    """The meaning of ``value`` of ``key``; the value itself where its meaning follows from the rest of the file."""
    if key.special is None:
        return number_in(value)
    try:
        return key.special.read(value)
    except ValueError:
        return value


def _inside(around: Any, step: int | str, empty: Any) -> Any:
    """The value of ``around`` at ``step``; ``empty`` is put there where it had nothing."""
    if is_list(around):
        assert isinstance(step, int)
        around += [{} for _ in range(len(around), step + 1)]
        return around[step]
    return around.setdefault(step, empty)


def _fill(values: dict[str, Any], section: Section) -> None:
    """Give every section that ``values`` lack an empty one: what must be in it is missing there, by name."""
    for key in section.keys:
        inner = key.kinds.get("")
        if inner is None:
            continue
        found = values.get(key.name, []) if key.repeated else [values.setdefault(key.name, {})]
        for one in found if is_list(found) else []:
            if is_mapping(one):
                _fill(one, inner)


def _with_indices(key: KeyInfo, path: KeyPath) -> KeyPath:
    """The path of ``key`` in the schema, with the list indices of ``path``; an alias outside of a list means the list's
    first element."""
    indices = [step for step in path if isinstance(step, int)]
    return tuple((indices.pop(0) if indices else 0) if step == "[]" else step for step in pattern(key.path))
