"""From run files and overrides to a `RunConfig`, with the place of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quintet.config.dump import differences, dump_run_config
from quintet.config.errors import problems_of
from quintet.config.interpolate import resolve
from quintet.config.keypath import KeyPath, parse, show
from quintet.config.merge import apply_overrides, merge, read_with_bases
from quintet.config.places import Place, Problem, RunFileError, place_of
from quintet.config.schema import RunConfig
from quintet.errors import UserError

__all__ = ["Loaded", "differences", "dump_run_config", "load_run_config"]


@dataclass(frozen=True)
class Loaded:
    """A run config, the place of each value that was given, and ``raw``: the values as given, with interpolations
    resolved and nothing filled in."""

    config: RunConfig
    places: Mapping[KeyPath, Place]
    raw: Mapping[str, Any]

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
            found.append(Problem(place, key, message) if known else Problem(place, "", problem))
        return RunFileError(found)


def load_run_config(files: Sequence[Path], overrides: Sequence[str] = ()) -> Loaded:
    """Read run files, merged from left to right, then set each override ``key.path=value``.

    Raises UserError (a RunFileError) with every mistake: in the files' YAML, in the overrides, in interpolations, or,
    when all these are right, in keys and values.
    """
    if not files:
        raise UserError("no run file given; name at least one")
    document = reduce(merge, [read_with_bases(Path(file)) for file in files])
    if "name" not in document.values:
        last = Path(files[-1])
        document.values["name"] = last.stem
        document.places[("name",)] = Place(str(last))
    document = apply_overrides(document, overrides)
    values = resolve(document)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise RunFileError(problems_of(error, values, document.places)) from None
    return Loaded(config, document.places, values)
