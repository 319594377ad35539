"""From run files and overrides to a `RunConfig`, with the place of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.native import Output
from quintet.config.dialects.table import Dialect
from quintet.config.dialects.translate import Purpose, translate, with_dialect_defaults
from quintet.config.dump import differences, dump_run_config
from quintet.config.errors import problems_of
from quintet.config.hydra import apply_hydra_overrides, compose, is_composed
from quintet.config.interpolate import resolve, variables_of
from quintet.config.keypath import KeyPath, parse, show, walk
from quintet.config.merge import apply_overrides, merge, with_bases
from quintet.config.names import PATHS, local_path
from quintet.config.places import Place, Problem, RunFileError, place_of
from quintet.config.read import Document, read_document
from quintet.config.schema import RunConfig
from quintet.errors import UserError

__all__ = ["Loaded", "Reading", "differences", "dump_run_config", "load_run_config"]


@dataclass(frozen=True)
class Reading:
    """How files are to be read: as ``dialect`` (found out from their keys when None), composed from ``config_folder``
    (a file's own when None), and for what ``purpose``."""

    dialect: str | None = None
    config_folder: Path | None = None
    purpose: Purpose = "train"


@dataclass(frozen=True)
class Loaded:
    """A run config, the place of each value that was given, and ``raw``: the values as given, with interpolations
    resolved and nothing filled in. For a file of a ``dialect`` these are of its translation, about which ``notes`` say
    what its user should know, and ``prepare_to`` where `quintet prepare` writes the data, None for the cache."""

    config: RunConfig
    places: Mapping[KeyPath, Place]
    raw: Mapping[str, Any]
    dialect: Dialect | None = None
    notes: tuple[str, ...] = ()
    prepare_to: Output | None = None

    @property
    def origins(self) -> dict[str, str]:
        """'file:line' or 'command line' for each key path that was given, such as ``data.sources[0].path``."""
        return {show(path): str(place) for path, place in self.places.items() if path}

    def located(self, error: UserError) -> RunFileError:
        """``error``, each of whose problems starts with the key that it is about, with the places of these keys."""
        found = []
        for problem in error.problems:
            key, _, message = problem.partition(": ")
            path = parse(key)
            known = path is not None and path[0] in self.raw
            place = place_of(path if known and path else (), self.places)
            found.append(Problem(place, key, message).in_its_words() if known else Problem(place, "", problem))
        return RunFileError(found)

    def in_its_words(self, error: UserError) -> UserError:
        """``error`` with the dialect's keys and lines where a problem begins with a native key that its file set."""
        said = []
        for problem in error.problems:
            key, _, message = problem.partition(": ")
            place = self.places.get(parse(key) or ())
            known = place is not None and place.key
            said.append(str(Problem(place, key, message).in_its_words()) if place and known else problem)
        return UserError(*said)


def load_run_config(files: Sequence[Path], overrides: Sequence[str] = (), reading: Reading | None = None) -> Loaded:
    """Read run files, merged from left to right, then set each override ``key.path=value``; files of a dialect are
    translated.

    Raises UserError (a RunFileError) with every mistake: in the files' YAML, in the overrides, in interpolations, or,
    when all these are right, in keys and values.
    """
    if not files:
        raise UserError("no run file given; name at least one")
    reading = reading or Reading()
    document, left, hydra = _merged([Path(file) for file in files], overrides, reading.config_folder)
    dialect = dialect_named(reading.dialect) if reading.dialect else detect(document.values)
    notes: tuple[str, ...] = ()
    prepare_to: Output | None = None
    if dialect is None:
        document = apply_overrides(_named(document, files), left)
        values = resolve(document)
    else:
        document = (apply_hydra_overrides if hydra or dialect.hydra else apply_overrides)(document, left)
        resolved = resolve(document, partial(with_dialect_defaults, dialect))
        translation = translate(dialect, Document(resolved, document.places), reading.purpose, variables_of(document))
        document, notes = _named(translation.document, files), translation.notes
        prepare_to = translation.prepare_to
        values = document.values
    _check_paths(values, document)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error, values, document.places)
        raise RunFileError(problem.in_its_words() for problem in problems) from None
    return Loaded(config, document.places, values, dialect, notes, prepare_to)


def _check_paths(values: dict[str, Any], document: Document) -> None:
    """Raise RunFileError for every path that no file can have."""
    problems = []
    for path, text in walk(values):
        names = [step for step in path if isinstance(step, str)]
        if isinstance(text, str) and names and names[-1] in PATHS:
            try:
                local_path(text)
            except UserError as error:
                problems.append(Problem(place_of(path, document.places), show(path), str(error)).in_its_words())
    if problems:
        raise RunFileError(problems)


def _merged(files: list[Path], overrides: Sequence[str], folder: Path | None) -> tuple[Document, list[str], bool]:
    """The files as one, the overrides that are still to be applied, and whether Hydra composed any of the files."""
    documents, used = [], set()
    for file in files:
        document = read_document(file)
        if is_composed(document) or folder is not None:
            composed = compose(document, file, overrides, folder)
            used |= set(composed.used)
            documents.append(composed.document)
        else:
            documents.append(with_bases(document, file))
    return reduce(merge, documents), [text for text in overrides if text not in used], bool(used)


def _named(document: Document, files: Sequence[Path]) -> Document:
    """``document`` with a name: that of the last file, where it has none."""
    if "name" not in document.values:
        last = Path(files[-1])
        document.values["name"] = last.stem
        document.places[("name",)] = Place(str(last))
    return document
