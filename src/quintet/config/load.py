"""Loading of run files and overrides into a `RunConfig`, with the origin of each value."""

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
    """Options of reading: the ``dialect`` (detected by the keys if None), the ``config_folder`` of Hydra's defaults
    lists (the file's own folder if None), and the ``purpose``. With ``in_place`` the run file in a run folder names
    this folder, and its paths are relative to the folder in which the run was started."""

    dialect: str | None = None
    config_folder: Path | None = None
    purpose: Purpose = "train"
    in_place: bool = True


@dataclass(frozen=True, eq=False)  # not compared by value
class Loaded:
    """A run config, the origin of each value that was given, and these values.

    ``raw`` are the values that were given, with interpolations resolved and no defaults; for a ``dialect``, those of
    the translation. ``notes`` are remarks on the translation for the user. ``prepare_to`` is where `quintet prepare`
    writes the data, None for the cache. ``files`` are the contents of all files that were read, by resolved path.
    ``not_here`` are files that the translation would have used and this machine lacks.
    """

    config: RunConfig
    provenance: Mapping[KeyPath, Origin]
    raw: Mapping[str, Any]
    dialect: Dialect | None = None
    notes: tuple[str, ...] = ()
    prepare_to: Output | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict[Path, bytes])
    not_here: tuple[Problem, ...] = ()

    def placed(self, lines: Sequence[str]) -> list[Problem]:
        """Return ``lines``, each of which starts with a native key, as problems with origins and keys of the file."""
        return self.located(UserError(*lines)).details if lines else []

    def lacking(self, missing: Sequence[str]) -> list[Problem]:
        """Return everything that the file names and this machine lacks: `not_here`, and the lines ``missing``, each of
        which starts with a native key. A key that sets several native keys is reported once."""
        known = {(problem.origin.line, problem.key) for problem in self.not_here}
        problems = [p for p in self.placed(missing) if (p.origin.line, p.key) not in known]
        unique = {(p.origin, p.key, _NATIVE.sub("", p.message)): p for p in reversed(problems)}
        return [*self.not_here, *(problem for problem in problems if problem in unique.values())]

    @property
    def original(self) -> Original | None:
        """The files of a dialect as they were written; None for native files, whose values the run folder has."""
        if self.dialect is None:
            return None
        around = os.path.commonpath([file.parent for file in self.files])
        return Original(
            self.provenance, {file.relative_to(around).as_posix(): content for file, content in self.files.items()}
        )

    @property
    def origins(self) -> dict[str, str]:
        """Each key path that was given, such as ``data.sources[0].path``, with 'file:line' or 'command line'."""
        return {show(path): str(origin) for path, origin in self.provenance.items() if path}

    def _names(self, file: str) -> KeyPath:
        """Return the path of the native key that names ``file`` or a folder around it, for a dialect; () if none
        does."""
        for path, value in walk(self.raw) if self.dialect else ():
            names = [step for step in path if isinstance(step, str)]
            if not isinstance(value, str) or not value or not names or names[-1] not in PATHS:
                continue
            if f"{file}/".startswith(f"{value.rstrip('/')}/"):
                return path
        return ()

    def in_words(self, line: str) -> str:
        """Return the message ``line`` with the keys and lines of the file in place of native keys."""
        return line_in_its_words(line, self.provenance, self.dialect)

    def located(self, error: UserError) -> RunFileError:
        """Return ``error``, each of whose problems starts with a native key, with the origins and keys of the file; a
        RunFileError is returned as it is."""
        if isinstance(error, RunFileError):
            return error
        problems: list[Problem] = []
        for problem in error.problems:
            key, _, message = problem.partition(": ")
            path = parse(key)
            if path is None or path[0] not in RunConfig.model_fields:
                path, message = self._names(key), problem
                key = show(path)
            origin = origin_of(path, self.provenance)
            problems.append(Problem(Origin(origin.file) if not key else origin, key, message))
        return RunFileError(in_its_words(problems, self.provenance, self.dialect))


class Refused(RunFileError):
    """The mistakes of run files, and ``left``: the run without the wrong values, None if that is not a run."""

    def __init__(self, problems: Iterable[Problem], left: Loaded | None, not_here: Iterable[Problem] = ()) -> None:
        super().__init__(problems, not_here)
        self.left = left

    def beside(self, mistakes: Sequence[str], missing: Sequence[str]) -> Refused:
        """Return the error with the ``mistakes`` and ``missing`` inputs of ``left`` added: lines that start with a
        native key. Those that concern a value in place of a wrong one are dropped."""
        if self.left is None:
            return self
        details = add_unrelated(self.details, self.left.placed(mistakes), self.left.dialect)
        wrong = {problem.key for problem in self.details}
        lacking = [p for p in self.left.lacking(missing) if p.origin.line or p.origin.file is None]
        not_here = [p for p in lacking if wrong.isdisjoint(accumulate(p.key.split("."), "{}.{}".format))]
        return Refused(details, self.left, not_here)


def line_in_its_words(line: str, provenance: Provenance, dialect: Dialect | None) -> str:
    """Return the message ``line`` with the keys of the file of ``dialect`` in place of native keys, and the line of
    each: "training.batch_size (their.yaml:12)"."""
    if dialect is None:
        return line
    located: set[str] = set()

    def with_line(name: str, origin: Origin) -> str:
        if origin.line is None or name in located:
            return name
        located.add(name)
        return f"{name} ({origin})"

    return _renamed(line, provenance, dialect, with_line)


def in_its_words(problems: Iterable[Problem], provenance: Provenance, dialect: Dialect | None) -> list[Problem]:
    """Return ``problems``, which name native keys, with the keys and lines of the file of ``dialect`` that set them.

    Native keys in the messages are replaced, too. One that no key of the dialect sets is named as in the section
    `quintet:`.
    """
    if dialect is None:
        return list(problems)
    translated: list[Problem] = []
    for problem in problems:
        path = parse(problem.key)
        origin = _said_at(path, provenance, dialect) if path else Origin(problem.origin.file, problem.origin.line)
        key = origin.key if origin.key.startswith(f"{EXTENSION}.") else problem.key
        message = _renamed(problem.message, provenance, dialect, lambda name, _: name)
        translated.append(Problem(origin, key, message).in_its_words())
    return translated


def _renamed(text: str, provenance: Provenance, dialect: Dialect, shown: Callable[[str, Origin], str]) -> str:
    """Return ``text`` with each native key replaced by ``shown`` of the file's key and its origin."""

    def replaced(match: re.Match[str]) -> str:
        path = parse(match[0])
        if path is None or not _is_native(path):
            return match[0]
        origin = _said_at(path, provenance, dialect)
        name = origin.key.removeprefix(f"{dialect.name}'s default: ").replace(", ", " and ")
        return shown(name or match[0], origin)

    return _KEY.sub(replaced, text)


_KEY = re.compile(r"(?<![\w./\\-])[a-z_]+(?:\[\d+\]|(?:\[\d+\])?(?:\.[a-z_]\w*(?:\[\d+\])?)+)(?![\w/(\[])")
_DEFAULT = "'s default: "
_NATIVE = re.compile(r" \([\w.\[\]]+ of the run file\)$")
_INSTEAD = {"train.batch_size": "train.batch_size_per_device", "model.context_length": "data.sequence_length"}
"""Keys with another key that sets the same, or from which they follow if they are not set."""


def _is_native(path: KeyPath) -> bool:
    """True if ``path`` is of a key of native run files, or of an element of such a key's list."""
    steps = pattern_of(path)
    while steps[-1] == "[]":
        steps = steps[:-1]
    return not _native_keys().isdisjoint((steps, (*steps[:-1], "*")))


@cache
def _native_keys() -> frozenset[tuple[str, ...]]:
    """The steps to each key, with "*" for keys of other libraries."""
    keys = {pattern(key.path.removesuffix("[]")) for key in keys_of_run_file()}
    return frozenset(keys | {(*steps, "*") for steps in keys if steps[-1] in ("config", "arguments")})


def _said_at(path: KeyPath, provenance: Provenance, dialect: Dialect) -> Origin:
    """Return the origin of the native key ``path`` in a file of ``dialect``, or of the section or list around it; for a
    key that is not set, an origin with the keys of the dialect that would set it."""
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
    """Read run files, merge them from left to right, and apply the overrides ``key.path=value``; files of a dialect are
    translated.

    Raises UserError (a RunFileError) with all mistakes: in YAML, overrides and interpolations, or, if there are none of
    these, in keys and values.
    """
    if not files:
        raise UserError("no run file given; name at least one")
    with files_read() as read:
        return replace(_loaded(files, overrides, reading or Reading()), files=read)


def read_run_config(folder: Path) -> RunConfig:
    """Return the config of the run in ``folder``. Raises UserError if there is no run file in it."""
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
    """Return the config of ``values`` without those that are wrong, and problems that the validation of all of them did
    not report. Required values have stand-ins. The config is None if no valid one is left."""
    left, stand_in, reported, first = copy.deepcopy(dict(values)), dict(_STAND_IN), list[Problem](), 0
    removed: list[KeyPath] = []  # or replaced by a stand-in, so that a problem inside is not the user's
    while True:
        try:
            return RunConfig.model_validate(left), reported[first:]
        except ValidationError as error:
            problems = [(problem, parse(problem.key) or ()) for problem in problems_of(error, left, provenance)]
        own = [problem for problem, path in problems if not any(path[: len(part)] == part for part in removed)]
        reported = add_unrelated(reported, own, None)
        first = first or len(reported)
        wrong = [part for _, path in problems if (part := _remove_around(left, path, stand_in))]
        if not wrong:
            return None, reported[first:]
        removed += wrong


def _remove_around(values: dict[str, Any], path: KeyPath, stand_in: dict[str, Any]) -> KeyPath:
    """Remove the value at ``path`` from ``values``, or, if there is none, the innermost section around it, and return
    the path that was removed; () if there is none."""
    parts = (without_indices(path[:end]) for end in range(len(path), 0, -1))
    return next((part for part in parts if replace_wrong(values, part, stand_in)), ())


_STAND_IN: dict[str, Any] = {
    "data": {"sources": [{"kind": "text", "path": "."}]},
    "data.sources": [{"kind": "text", "path": "."}],
    "data.sequence_length": 2,
    "train": {"steps": 1},
    "train.steps": 1,
}
"""Values of required keys that are missing or wrong, for the validation of the others."""


def _validated(values: dict[str, Any], provenance: Provenance) -> tuple[RunConfig | None, list[Problem], list[str]]:
    """Return the config of ``values``, or its problems, and notes. A dialect's default that does not fit the values of
    the file is removed from ``values``, with a note."""
    first: list[Problem] | None = None
    notes: list[str] = []
    while True:
        try:
            return RunConfig.model_validate(values), [], notes
        except ValidationError as error:
            problems = problems_of(error, values, provenance)
        first = first or problems
        unfit = {p.key: p for p in problems if p.origin.line is None and _DEFAULT in p.origin.key}
        for name, problem in unfit.items():
            path = path_of(name)
            around = lookup(values, path[:-1])
            if not is_mapping(around) or around.pop(path[-1], None) is None:
                return None, first, []
            notes.append(f"{problem.origin.key.partition(_DEFAULT)[2]}: the default is not used: {problem.message}")
        if not unfit:
            return None, first, []


def _path_problems(values: dict[str, Any], document: YamlDocument) -> list[Problem]:
    """Return a problem for each path that no file can have."""
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
    """Return the files merged, the overrides that are still to be applied, and True if Hydra composed a file."""
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
    """Set the name of the run in ``document``, the run file in ``folder``, to this folder, which may be a copy or have
    been moved, and make paths relative to the working folder of the run absolute if there is such a file."""
    working, written = working_folder(folder), document.values.get("runs_dir", "")
    document.values["name"] = folder.resolve().name
    if not isinstance(written, str) or Path(written).absolute() != folder.parent.absolute():
        document.values["runs_dir"] = str(folder.parent)
    if working is None or working == Path.cwd():
        return
    for path, text in list(walk(document.values)):
        names = [step for step in path if isinstance(step, str)]
        if isinstance(text, str) and names and names[-1] in INPUTS:
            file = working / _before_pattern(text)
            if not text.startswith("~") and not os.path.isabs(text) and file != working and file.exists():
                _set(document.values, path, str(working / text))


def _before_pattern(text: str) -> Path:
    """Return the first parts of the path ``text``, up to the first with a character of a pattern."""
    return Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), Path(text).parts))


def _set(values: Any, path: KeyPath, value: str) -> None:
    reduce(lambda inner, step: inner[step], path[:-1], values)[path[-1]] = value


def _with_usable_name(translation: Translation) -> Iterator[str]:
    """Change a name of the run in ``translation`` that a folder cannot have, and yield a note on it."""
    document = translation.document
    name = document.values.get("name")
    if isinstance(name, str) and (usable := _usable(name, document)) != name:
        document.values["name"] = usable
        key = origin_of(("name",), document.provenance).key or "name"
        yield f"{key}: the folder of the run is {usable!r}, because {name!r} cannot be a folder's name on all systems"


def _usable(name: str, document: YamlDocument) -> str:
    """Return ``name``, or the nearest name that a new run of ``document`` can have; an existing run keeps its name."""
    runs = str(document.values.get("runs_dir", "runs"))
    if name_problem(name) is None or (name not in (".", "..") and is_path(f"{runs}/{name}/{RUN_FILE}")):
        return name
    return usable_name(name)


def _named(document: YamlDocument, files: Sequence[Path]) -> YamlDocument:
    """Set the name in ``document`` to that of the last file if it has none, and return it."""
    if "name" not in document.values:
        last = Path(files[-1])
        document.values["name"] = _usable(last.stem, document)
        document.provenance[("name",)] = Origin(str(last))
    return document
