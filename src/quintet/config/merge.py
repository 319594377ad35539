"""Several descriptions of one run made into one: files, what they extend, and values of the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quintet.config.describe import default_kinds
from quintet.config.keypath import KeyPath, lookup, parse, show, walk
from quintet.config.places import COMMAND_LINE, Place, Problem, RunFileError
from quintet.config.read import Document, first_line, read_document


def with_bases(document: Document, file: Path, around: tuple[Path, ...] = ()) -> Document:
    """``document``, which ``file`` holds, merged over the files that it ``extends``, which are relative to its folder;
    the key itself is gone.

    Raises RunFileError as `read_document` does, and when a file extends itself, be it through others.
    """
    if "extends" not in document.values:
        return document
    around = (*around, file.resolve())
    place = document.places[("extends",)]
    bases = [file.parent / Path(name).expanduser() for name in _bases(document, place)]
    del document.values["extends"]
    forget(document.places, ("extends",))
    merged: Document | None = None
    for base in bases:
        if base.resolve() in around:
            raise RunFileError([Problem(place, "extends", f"{base} extends itself, directly or through others")])
        found = with_bases(read_document(base, place), base, around)
        merged = found if merged is None else merge(merged, found)
    return document if merged is None else merge(merged, document)


def _bases(document: Document, place: Place) -> list[str]:
    try:
        extends = OmegaConf.create(document.values)["extends"]
    except OmegaConfBaseException as error:
        raise RunFileError([Problem(place, "extends", first_line(error))]) from None
    names = list(extends) if OmegaConf.is_list(extends) else [extends]
    if not all(isinstance(name, str) and name for name in names):
        raise RunFileError([Problem(place, "extends", "must be the name of a file, or a list of names")])
    return names


def merge(base: Document, over: Document) -> Document:
    """``base`` with ``over`` on top: sections merge, everything else is replaced, lists too.

    A section that ``over`` gives another kind starts anew, for the options of the old one do not belong to it.
    """
    places = dict(base.places)
    values = _merged(base.values, over, (), places)
    return Document(values, places)


def _merged(base: dict[str, Any], over: Document, path: KeyPath, places: dict[KeyPath, Place]) -> dict[str, Any]:
    values = dict(base)
    section: Any = over.values
    for step in path:
        section = section[step]
    places[path] = over.places[path]
    for name, value in section.items():
        inner = (*path, name)
        old = values.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value, inner):
            values[name] = _merged(old, over, inner, places)
            continue
        values[name] = value
        forget(places, inner)
        places.update({deeper: over.places[deeper] for deeper, _ in walk(value, inner) if deeper in over.places})
    return values


def _same_kind(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> bool:
    return new.get("kind") in (None, old.get("kind", default_kinds().get(path)))


def forget(places: dict[KeyPath, Place], path: KeyPath) -> None:
    """Remove the place of ``path`` and of all that is inside it."""
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """``document`` with each ``key.path=value`` set, in order; the value is YAML and replaces what is there.

    Raises RunFileError with every override that is malformed or leads to no place.
    """
    values, places = copy.deepcopy(document.values), dict(document.places)
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value_text = text.partition("=")
        path = parse(key)
        if not equals or path is None:
            message = f"{text!r} is no override; write key.path=value, for instance train.steps=100"
            problems.append(Problem(COMMAND_LINE, "", message))
            continue
        try:
            value = _value(value_text)
            set_override(values, places, path, value)
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, show(path), str(error)))
    if problems:
        raise RunFileError(problems)
    return Document(values, places)


def _value(text: str) -> Any:
    """``text`` read as the value of a YAML list's only element, so that every YAML value is possible."""
    try:
        indented = text.replace("\n", "\n  ")
        found = OmegaConf.to_container(OmegaConf.create(f"- {indented}\n"))
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{text!r} is no YAML value ({error.problem}); quote what YAML reads as syntax") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{text!r} is no YAML value ({first_line(error)})") from None
    assert isinstance(found, list)
    if len(found) != 1:
        raise ValueError(f"{text!r} is no single YAML value")
    return found[0]


def set_override(here: Any, places: dict[KeyPath, Place], path: KeyPath, value: Any) -> None:
    """Set ``path`` below ``here`` as the command line says, making the sections on the way.

    Raises ValueError where a list stands in the way.
    """
    if path == ("extends",):
        raise ValueError("belongs in a file; on the command line name several files, the later ones win")
    for position, step in enumerate(path):
        _check_step(here, path, position)
        if position == len(path) - 1:
            here[step] = value
            break
        old = lookup(here, (step,))
        if isinstance(old, str) and "${" in old:
            raise ValueError(f"{show(path[: position + 1])} is {old!r}; set it as a whole")
        if not isinstance(old, dict | list):
            here[step] = {}
            forget(places, path[: position + 1])
            places[path[: position + 1]] = COMMAND_LINE
        here = lookup(here, (step,))
    forget(places, path)
    places.update({deeper: COMMAND_LINE for deeper, _ in walk(value, path)})


def _check_step(here: Any, path: KeyPath, position: int) -> None:
    """Raise ValueError unless ``path[position]`` can stand in ``here``, which is a list or a section."""
    step, shown = path[position], show(path[:position])
    if isinstance(here, list) and isinstance(step, str):
        raise ValueError(f"{shown} is a list; say which element: {shown}[0].{show(path[position:])}")
    if isinstance(here, list) and step not in range(len(here)):
        raise ValueError(f"{shown} has {len(here)} elements, counted from 0")
    if isinstance(here, dict) and isinstance(step, int):
        raise ValueError(f"{shown or 'the top'} is no list here; set the list as a whole: {shown}=[…]")
