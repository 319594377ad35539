"""Composition of files with a Hydra `defaults:` list.

Hydra determines which files make the config, in which order and under which package
(https://hydra.cc/docs/advanced/defaults_list/). They are then read and merged like all run files, so that each value
keeps its origin.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from quintet.config.keypath import ABSENT, KeyPath, lookup, parse
from quintet.config.merge import Override, Verb, apply_override, merge
from quintet.config.provenance import COMMAND_LINE, Origin, Problem, RunFileError, origin_of
from quintet.config.read import YamlDocument, read_document
from quintet.errors import one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override as HydraOverride

OWN_SETTINGS = "hydra"
"""The key under which a file configures Hydra itself: jobs, sweeps, folders."""


@dataclass(frozen=True)
class Composed:
    """A composed config, and the overrides that chose files of groups and need not be applied again."""

    document: YamlDocument
    used: tuple[str, ...]


def is_composed(document: YamlDocument) -> bool:
    """True if ``document`` has a defaults list."""
    return "defaults" in document.values


def compose(document: YamlDocument, file: Path, overrides: Sequence[str], folder: Path | None = None) -> Composed:
    """Return ``document``, the content of ``file``, composed with the files that its defaults list names in ``folder``
    (the folder of ``file`` if None).

    Overrides that choose a file of a group (``model=gpt2_small``, ``+experiment=x``, ``~logging``) are used; the others
    are left to the caller. Raises RunFileError if a file is missing or the list is wrong.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    root = (folder or file.parent).resolve()
    name = file.resolve().relative_to(root).with_suffix("").as_posix()
    choosing = [text for text in overrides if _chooses(text, root)]
    GlobalHydra.instance().clear()
    try:
        # Hydra warns of changes in its next version.
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, initialize_config_dir(str(root), version_base=_version_base(document)):
            loader = GlobalHydra.instance().config_loader()
            defaults_list = loader.compute_defaults_list(name, choosing, RunMode.RUN)
    except Exception as error:  # Hydra raises errors of several libraries, and AssertionErrors
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        if mark is not None and (broken := Path(mark.name)).is_file():
            read_document(broken)  # raises an error with the line
        origin = origin_of(("defaults",), document.provenance)
        raise RunFileError([Problem(origin, "defaults", _reason(error, root))]) from None
    composed: YamlDocument | None = None
    for default in defaults_list.defaults:
        path = default.config_path
        if path is None or path.split("/")[0] == OWN_SETTINGS:
            continue
        package = default.package or ""
        part = _packaged(document, package) if path == name else _part(_file(root, path, file), package)
        composed = part if composed is None else merge(composed, part)
    assert composed is not None, file
    composed.provenance[()] = Origin(str(file))
    return Composed(composed, tuple(choosing))


def apply_hydra_overrides(document: YamlDocument, overrides: Sequence[str]) -> YamlDocument:
    """Return ``document`` with overrides in Hydra's grammar applied: ``key=value``, ``+key=value``, ``++key=value``,
    ``~key``.

    Raises RunFileError with all overrides that are malformed, delete nothing, or ask for a sweep.
    """
    from hydra.errors import HydraException

    problems: list[Problem] = []
    for text in overrides:
        try:
            document = apply_override(document, _override(text))
        except HydraException as error:
            problems.append(
                Problem(COMMAND_LINE, "", f"{text!r} is no override of Hydra's: {one_line(error, lines=1)}")
            )
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, text.partition("=")[0].lstrip("+~"), str(error)))
    if problems:
        raise RunFileError(problems)
    return document


def _parsed(text: str) -> HydraOverride:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _override(text: str) -> Override:
    """Return the override ``text``.

    Raises HydraException if Hydra cannot read it, ValueError if Quintet does not support it.
    """
    from hydra.core.override_parser.types import OverrideType

    parsed = _parsed(text)
    key, path = parsed.key_or_group, parse(parsed.key_or_group)
    if parsed.is_sweep_override():
        raise ValueError("is a sweep over several values; give one, a run is one config")
    if parsed.package is not None:
        raise ValueError(f"names a package of the group {key!r}, and there is no such group")
    if path is None:
        raise ValueError("is no key")
    if path[0] == OWN_SETTINGS:
        raise ValueError("is a setting of Hydra's jobs and folders, which a run of Quintet does not have; remove it")
    verbs: dict[OverrideType, Verb] = {
        OverrideType.CHANGE: "",
        OverrideType.ADD: "+",
        OverrideType.FORCE_ADD: "++",
        OverrideType.DEL: "~",
    }
    return Override(verbs[parsed.type], path, parsed.value())


def _chooses(text: str, root: Path) -> bool:
    """True if an override chooses a file of a group, which is a folder of ``root``."""
    from hydra.errors import HydraException

    try:
        override = _parsed(text)
    except HydraException:
        return False  # reported when it is applied
    group = override.key_or_group
    is_group = bool(group) and "." not in group and (root / group).is_dir()
    return is_group and not override.is_sweep_override() and not isinstance(override.value(), dict)


def _part(file: Path, package: str) -> YamlDocument:
    """Read ``file`` as the content of ``package``; a list is the value of the package's last step."""
    around, _, last = package.rpartition(".")
    document = read_document(file, list_key=last, may_be_empty=True)
    return _packaged(document, around if document.is_list else package)


def _packaged(document: YamlDocument, package: str) -> YamlDocument:
    """Return ``document`` moved below ``package`` ("" is the top), without defaults list and Hydra's own settings."""
    values = {name: value for name, value in document.values.items() if name != "defaults"}
    provenance = {path: origin for path, origin in document.provenance.items() if path[:1] != ("defaults",)}
    steps = tuple(package.split(".")) if package else ()
    for step in reversed(steps):
        values = {step: values}
    top = provenance[()]
    moved: dict[KeyPath, Origin] = {steps[:length]: top for length in range(len(steps) + 1)}
    moved |= {(*steps, *path): origin for path, origin in provenance.items()}
    values.pop(OWN_SETTINGS, None)
    return YamlDocument(values, {path: origin for path, origin in moved.items() if path[:1] != (OWN_SETTINGS,)})


def _file(root: Path, config_path: str, asked_by: Path) -> Path:
    file = root / f"{config_path}.yaml"
    try:
        return asked_by.parent / file.relative_to(asked_by.resolve().parent)
    except ValueError:
        return file


def _version_base(document: YamlDocument) -> str | None:
    """Return the version of Hydra whose rules a file asks for, None for the installed one."""
    version = lookup(document.values, ("HydraConf", "version_base"))
    return None if version in (ABSENT, None) else str(version)


def _reason(error: Exception, root: Path) -> str:
    """Return Hydra's message on one line, without its search path."""
    text = str(error).partition("Config search path:")[0] or "is no list of defaults that Hydra can read"
    return " ".join(text.split()) + f" (config folder: {root})"
