"""From run files and overrides to a `RunConfig`, with the place of every value."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quintet.config.describe import walk as keys_of_run_file
from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.dialect import Dialect, pattern, pattern_of
from quintet.config.dialects.file import add_unrelated, replace_wrong, without_indices
from quintet.config.dialects.native import Output
from quintet.config.dialects.translate import (
    EXTENSION,
    Purpose,
    Translation,
    translate,
    with_dialect_defaults,
)
from quintet.config.dump import differences, dump_run_config
from quintet.config.errors import problems_of
from quintet.config.hydra import apply_hydra_overrides, compose, is_composed
from quintet.config.interpolate import resolve, variables_of
from quintet.config.keypath import KeyPath, is_mapping, lookup, parse, path_of, show, walk
from quintet.config.merge import apply_overrides, merge, with_bases
from quintet.config.names import (
    INPUTS,
    PATHS,
    RUN_FILE,
    is_path,
    is_written_by_run,
    local_path,
    name_problem,
    usable_name,
    working_folder,
)
from quintet.config.provenance import Origin, Original, Problem, Provenance, RunFileError, origin_of
from quintet.config.read import YamlDocument, files_read, read_document
from quintet.config.schema import RunConfig
from quintet.config.secrets import from_environment, remember
from quintet.errors import UserError

__all__ = ["Loaded", "Reading", "differences", "dump_run_config", "load_run_config", "read_run_config"]


@dataclass(frozen=True)
class Reading:
    """How files are to be read: as ``dialect`` (found out from their keys when None), composed from ``config_folder``
    (a file's own when None), and for what ``purpose``. The run file in a run's folder is ``in_place``: it names this
    folder, and its relative paths begin where the run began."""

    dialect: str | None = None
    config_folder: Path | None = None
    purpose: Purpose = "train"
    in_place: bool = True


@dataclass(frozen=True, eq=False)  # a config remembers what it was loaded as, which configs are not compared by
class Loaded:
    """A run config, the place of each value that was given, and ``raw``: the values as given, with interpolations
    resolved and nothing filled in. For a file of a ``dialect`` these are of its translation, about which ``notes`` say
    what its user should know, ``prepare_to`` where `quintet prepare` writes the data, None for the cache, ``files``
    what was read, by resolved path, and ``not_here`` what the translation does without, as it is not on this
    machine."""

    config: RunConfig
    provenance: Mapping[KeyPath, Origin]
    raw: Mapping[str, Any]
    dialect: Dialect | None = None
    notes: tuple[str, ...] = ()
    prepare_to: Output | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict[Path, bytes])
    not_here: tuple[Problem, ...] = ()

    def placed(self, lines: Sequence[str]) -> list[Problem]:
        """``lines``, each of which begins with a native key, as problems with the places and the words of the file."""
        return self.located(UserError(*lines)).details if lines else []

    def lacking(self, missing: Sequence[str]) -> list[Problem]:
        """Everything that the file names and this machine lacks: what the translation does without, and what else is
        ``missing``, lines that begin with a native key. Each key is told once, also where it says several native
        ones."""
        told = {(one.origin.line, one.key) for one in self.not_here}
        found = [one for one in self.placed(missing) if (one.origin.line, one.key) not in told]
        once = {(one.origin, one.key, _NATIVE.sub("", one.message)): one for one in reversed(found)}
        return [*self.not_here, *(one for one in found if one in once.values())]

    @property
    def original(self) -> Original | None:
        """The file as it was written, of a native one None: the run folder has all that it says."""
        if self.dialect is None:
            return None
        around = os.path.commonpath([file.parent for file in self.files])
        return Original(
            self.provenance, {file.relative_to(around).as_posix(): content for file, content in self.files.items()}
        )

    @property
    def origins(self) -> dict[str, str]:
        """'file:line' or 'command line' for each key path that was given, such as ``data.sources[0].path``."""
        return {show(path): str(origin) for path, origin in self.provenance.items() if path}

    def _names(self, file: str) -> KeyPath:
        """The key of a dialect's file that names ``file``, or the folder that it is in; no step where none does."""
        for path, value in walk(self.raw) if self.dialect else ():
            names = [step for step in path if isinstance(step, str)]
            if not isinstance(value, str) or not value or not names or names[-1] not in PATHS:
                continue
            if f"{file}/".startswith(f"{value.rstrip('/')}/"):
                return path
        return ()

    def in_words(self, line: str) -> str:
        """``line``, which tells something of the run, with the keys and lines of the file."""
        return line_in_its_words(line, self.provenance, self.dialect)

    def located(self, error: UserError) -> RunFileError:
        """``error``, each of whose problems starts with the key that it is about, with the places of these keys, in the
        words of the file; one that has its places already stays as it is."""
        if isinstance(error, RunFileError):
            return error
        found: list[Problem] = []
        for problem in error.problems:
            key, _, message = problem.partition(": ")
            path = parse(key)
            if path is None or path[0] not in RunConfig.model_fields:
                path, message = self._names(key), problem
                key = show(path)
            origin = origin_of(path, self.provenance)
            found.append(Problem(Origin(origin.file) if not key else origin, key, message))
        return RunFileError(in_its_words(found, self.provenance, self.dialect))


class Refused(RunFileError):
    """The mistakes of run files, and what is ``left`` of the run without them, None where that is no run."""

    def __init__(self, problems: Iterable[Problem], left: Loaded | None, not_here: Iterable[Problem] = ()) -> None:
        super().__init__(problems, not_here)
        self.left = left

    def beside(self, mistakes: Sequence[str], missing: Sequence[str]) -> Refused:
        """The same with the ``mistakes`` of what is left, and all that the files name and this machine lacks: lines
        that begin with the native key. What stands in the place of a mistake is none of it."""
        if self.left is None:
            return self
        details = add_unrelated(self.details, self.left.placed(mistakes), self.left.dialect)
        wrong = {one.key for one in self.details}
        found = [one for one in self.left.lacking(missing) if one.origin.line or one.origin.file is None]
        sound = [one for one in found if wrong.isdisjoint(accumulate(one.key.split("."), "{}.{}".format))]
        return Refused(details, self.left, sound)


def line_in_its_words(line: str, provenance: Provenance, dialect: Dialect | None) -> str:
    """``line``, which names native keys, in the words of the file of ``dialect`` that has this ``provenance``, with the
    line where it says them: "training.batch_size (their.yaml:12)"."""
    if dialect is None:
        return line
    told: set[str] = set()

    def with_line(name: str, there: Origin) -> str:
        if there.line is None or name in told:
            return name
        told.add(name)
        return f"{name} ({there})"

    return _renamed(line, provenance, dialect, with_line)


def in_its_words(problems: Iterable[Problem], provenance: Provenance, dialect: Dialect | None) -> list[Problem]:
    """``problems``, which name native keys, in the words of the file of ``dialect`` that has this ``provenance``: each
    with the key and line that say the value, and with the names that the native keys in its message have there.

    A native key that no key of the dialect says is named as the section `quintet:` has it.
    """
    if dialect is None:
        return list(problems)
    found: list[Problem] = []
    for problem in problems:
        path = parse(problem.key)
        origin = _said_at(path, provenance, dialect) if path else Origin(problem.origin.file, problem.origin.line)
        key = origin.key if origin.key.startswith(f"{EXTENSION}.") else problem.key
        message = _renamed(problem.message, provenance, dialect, lambda name, _: name)
        found.append(Problem(origin, key, message).in_its_words())
    return found


def _renamed(text: str, provenance: Provenance, dialect: Dialect, shown: Callable[[str, Origin], str]) -> str:
    """``text`` with ``shown`` of each native key in it: of what the file calls the key, and of where it says it."""

    def replaced(match: re.Match[str]) -> str:
        path = parse(match[0])
        if path is None or not _is_native(path):
            return match[0]
        there = _said_at(path, provenance, dialect)
        name = there.key.removeprefix(f"{dialect.name}'s default: ").replace(", ", " and ")
        return shown(name or match[0], there)

    return _KEY.sub(replaced, text)


_KEY = re.compile(r"(?<![\w./\\-])[a-z_]+(?:\[\d+\]|(?:\[\d+\])?(?:\.[a-z_]\w*(?:\[\d+\])?)+)(?![\w/(\[])")
_DEFAULT = "'s default: "
_NATIVE = re.compile(r" \([\w.\[\]]+ of the run file\)$")
_INSTEAD = {"train.batch_size": "train.batch_size_per_device", "model.context_length": "data.sequence_length"}
"""Keys that say the same another way, or that follow another where they are not set."""


def _is_native(path: KeyPath) -> bool:
    """True if ``path`` is that of a key of native run files, or of an element of one that is a list."""
    steps = pattern_of(path)
    while steps[-1] == "[]":
        steps = steps[:-1]
    return not _native_keys().isdisjoint((steps, (*steps[:-1], "*")))


@cache
def _native_keys() -> frozenset[tuple[str, ...]]:
    """The steps of every key, with "*" for the keys of other libraries."""
    found = {pattern(key.path.removesuffix("[]")) for key in keys_of_run_file()}
    return frozenset(found | {(*steps, "*") for steps in found if steps[-1] in ("config", "arguments")})


def _said_at(path: KeyPath, provenance: Provenance, dialect: Dialect) -> Origin:
    """The place of the native key ``path`` in a file of ``dialect``, or of the list's element or section around it; for
    one that is not set, the keys of the dialect that set it."""
    name = show(path)
    for known in (path, path_of(_INSTEAD.get(name, name)), *(path[:end] for end in range(len(path) - 1, 1, -1))):
        origin = provenance.get(known)
        if origin is not None and origin.key and origin.key != dialect.name:
            return origin
        if origin is not None:
            return Origin(origin.file, origin.line, f"{EXTENSION}.{name}")
    steps = pattern_of(path)
    native = [key for key in dialect.keys if steps in map(pattern, key.role.native) and not key.role.unsupported]
    given = {origin.key: origin for origin in provenance.values() if origin.line is not None}
    here = next((given[key.path] for key in native if key.path in given), None)
    keys = " or ".join(key.path for key in native) or f"{EXTENSION}.{name}"
    return here or Origin(provenance[()].file, None, keys)


def load_run_config(files: Sequence[Path], overrides: Sequence[str] = (), reading: Reading | None = None) -> Loaded:
    """Read run files, merged from left to right, then set each override ``key.path=value``; files of a dialect are
    translated.

    Raises UserError (a RunFileError) with every mistake: in the files' YAML, in the overrides, in interpolations, or,
    when all these are right, in keys and values.
    """
    if not files:
        raise UserError("no run file given; name at least one")
    with files_read() as read:
        return replace(_loaded(files, overrides, reading or Reading()), files=read)


def read_run_config(folder: Path) -> RunConfig:
    """Return what the run file in a run's ``folder`` says. Raises UserError when ``folder`` holds none."""
    file = folder / RUN_FILE
    if not file.is_file():
        raise UserError(f"{folder}: holds no run (there is no run.yaml in it)")
    return load_run_config([file]).config


def _loaded(files: Sequence[Path], overrides: Sequence[str], reading: Reading) -> Loaded:
    document, left, hydra = _merged([Path(file) for file in files], overrides, reading)
    dialect = dialect_named(reading.dialect) if reading.dialect else detect(document.values)
    notes: tuple[str, ...] = ()
    prepare_to: Output | None = None
    problems: tuple[Problem, ...] = ()
    not_here: tuple[Problem, ...] = ()
    if dialect is None:
        document = apply_overrides(_named(document, files), left)
        values = resolve(document, keep_unset=any(is_written_by_run(Path(file)) for file in files))
        secret = from_environment(document, values, native=True)
    else:
        document = (apply_hydra_overrides if hydra or dialect.hydra else apply_overrides)(document, left)
        resolved = resolve(document, partial(with_dialect_defaults, dialect))
        secret = from_environment(document, resolved, native=False)
        translation = translate(
            dialect, YamlDocument(resolved, document.provenance), reading.purpose, variables_of(document)
        )
        document, notes = _named(translation.document, files), (*translation.notes, *_with_usable_name(translation))
        prepare_to, problems, not_here = translation.prepare_to, translation.problems, translation.not_here
        values = document.values
    config, later, unfit = _validated(values, document.provenance)
    later += _path_problems(values, document)
    found = in_its_words(later, document.provenance, dialect)
    found = found if dialect is None else add_unrelated(problems, found, dialect)
    if found:
        if config is None:
            config, following = _left(values, document.provenance)
            found = add_unrelated(found, in_its_words(following, document.provenance, dialect), dialect)
        left = config and Loaded(config, document.provenance, values, dialect, not_here=not_here)
        raise Refused(found, left, not_here)
    assert config is not None
    remember(config, secret)
    return Loaded(config, document.provenance, values, dialect, (*notes, *unfit), prepare_to, not_here=not_here)


def _left(values: Mapping[str, Any], provenance: Provenance) -> tuple[RunConfig | None, list[Problem]]:
    """The config that ``values`` are without those that are wrong, with stand-ins for what a run must have, None where
    that is no run; and what is wrong with it that the first look, at all of them, did not tell."""
    left, stand_in, told, first = copy.deepcopy(dict(values)), dict(_STAND_IN), list[Problem](), 0
    gone: list[KeyPath] = []  # what is left out, or has a stand-in: what is wrong inside it is nobody's mistake
    while True:
        try:
            return RunConfig.model_validate(left), told[first:]
        except ValidationError as error:
            problems = [(problem, parse(problem.key) or ()) for problem in problems_of(error, left, provenance)]
        own = [one for one, path in problems if not any(path[: len(part)] == part for part in gone)]
        told = add_unrelated(told, own, None)
        first = first or len(told)
        out = [part for _, path in problems if (part := _leave_out_around(left, path, stand_in))]
        if not out:
            return None, told[first:]
        gone += out


def _leave_out_around(values: dict[str, Any], path: KeyPath, stand_in: dict[str, Any]) -> KeyPath:
    """Leave out what ``values`` have at ``path``, or where they have nothing there the nearest section around it, and
    return its path; no step where there is none."""
    parts = (without_indices(path[:end]) for end in range(len(path), 0, -1))
    return next((part for part in parts if replace_wrong(values, part, stand_in)), ())


_STAND_IN: dict[str, Any] = {
    "data": {"sources": [{"kind": "text", "path": "."}]},
    "data.sources": [{"kind": "text", "path": "."}],
    "data.sequence_length": 2,
    "train": {"steps": 1},
    "train.steps": 1,
}
"""Values of what a run must have, for a look at the rest of one where these are missing or wrong."""


def _validated(values: dict[str, Any], provenance: Provenance) -> tuple[RunConfig | None, list[Problem], list[str]]:
    """The config that ``values`` are, or its problems. A default of a dialect that does not fit what the file says is
    taken out of ``values``, with a note."""
    first: list[Problem] | None = None
    notes: list[str] = []
    while True:
        try:
            return RunConfig.model_validate(values), [], notes
        except ValidationError as error:
            problems = problems_of(error, values, provenance)
        first = first or problems
        unfit = {one.key: one for one in problems if one.origin.line is None and _DEFAULT in one.origin.key}
        for name, problem in unfit.items():
            path = path_of(name)
            around = lookup(values, path[:-1])
            if not is_mapping(around) or around.pop(path[-1], None) is None:
                return None, first, []
            notes.append(f"{problem.origin.key.partition(_DEFAULT)[2]}: the default is left out: {problem.message}")
        if not unfit:
            return None, first, []


def _path_problems(values: dict[str, Any], document: YamlDocument) -> list[Problem]:
    """A problem for every path that no file can have."""
    problems: list[Problem] = []
    for path, text in walk(values):
        names = [step for step in path if isinstance(step, str)]
        if isinstance(text, str) and names and names[-1] in PATHS:
            try:
                local_path(text)
            except UserError as error:
                problems.append(Problem(origin_of(path, document.provenance), show(path), str(error)))
    return problems


def _merged(files: list[Path], overrides: Sequence[str], reading: Reading) -> tuple[YamlDocument, list[str], bool]:
    """The files as one, the overrides that are still to be applied, and whether Hydra composed any of the files."""
    documents: list[YamlDocument] = []
    used: set[str] = set()
    folder = reading.config_folder
    for file in files:
        document = read_document(file)
        if reading.in_place and is_written_by_run(file):
            _put_in_place(document, file.parent)
        if is_composed(document) or folder is not None:
            composed = compose(document, file, overrides, folder)
            used |= set(composed.used)
            documents.append(composed.document)
        else:
            documents.append(with_bases(document, file))
    return reduce(merge, documents), [text for text in overrides if text not in used], bool(used)


def _put_in_place(document: YamlDocument, folder: Path) -> None:
    """Let ``document``, the run file in ``folder``, name this folder, whatever the run was called before it was copied
    or moved; a relative path begins where the run began, if there is such a file."""
    began, written = working_folder(folder), document.values.get("runs_dir", "")
    document.values["name"] = folder.resolve().name
    if not isinstance(written, str) or Path(written).absolute() != folder.parent.absolute():
        document.values["runs_dir"] = str(folder.parent)
    if began is None or began == Path.cwd():
        return
    for path, text in list(walk(document.values)):
        names = [step for step in path if isinstance(step, str)]
        if isinstance(text, str) and names and names[-1] in INPUTS:
            found = began / _before_pattern(text)
            if not text.startswith("~") and not os.path.isabs(text) and found != began and found.exists():
                _set(document.values, path, str(began / text))


def _before_pattern(text: str) -> Path:
    """The folders at the beginning of the path ``text`` that have no character of a pattern in their names."""
    return Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), Path(text).parts))


def _set(values: Any, path: KeyPath, value: str) -> None:
    reduce(lambda inner, step: inner[step], path[:-1], values)[path[-1]] = value


def _with_usable_name(translation: Translation) -> Iterator[str]:
    """A note on the name of the run that ``translation`` has, where it gets another one: names of a framework's runs
    have characters that no folder's has."""
    document = translation.document
    name = document.values.get("name")
    if isinstance(name, str) and (usable := _usable(name, document)) != name:
        document.values["name"] = usable
        key = origin_of(("name",), document.provenance).key or "name"
        yield f"{key}: the folder of the run is {usable!r}, for a folder cannot have the name {name!r} everywhere"


def _usable(name: str, document: YamlDocument) -> str:
    """``name``, or the nearest that a new run of ``document`` can have; a run that is there keeps its own."""
    runs = str(document.values.get("runs_dir", "runs"))
    if name_problem(name) is None or (name not in (".", "..") and is_path(f"{runs}/{name}/{RUN_FILE}")):
        return name
    return usable_name(name)


def _named(document: YamlDocument, files: Sequence[Path]) -> YamlDocument:
    """``document`` with a name: that of the last file, where it has none."""
    if "name" not in document.values:
        last = Path(files[-1])
        document.values["name"] = _usable(last.stem, document)
        document.provenance[("name",)] = Origin(str(last))
    return document
