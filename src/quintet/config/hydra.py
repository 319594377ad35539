"""Files with a Hydra `defaults:` list, composed from their config folder with the line of every value.

Hydra works out which files make the config, in which order and under which package (https://hydra.cc/docs/advanced/defaults_list/);
they are then read and merged as all run files are, so that every value keeps its place.
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
    """A composed config, and the overrides that chose files of groups and are therefore done."""

    document: YamlDocument
    used: tuple[str, ...]


def is_composed(document: YamlDocument) -> bool:
    """True if ``document`` has a defaults list."""
    return "defaults" in document.values


def compose(document: YamlDocument, file: Path, overrides: Sequence[str], folder: Path | None = None) -> Composed:
    """``document``, which ``file`` holds, with what its defaults list names, below ``folder`` (the file's own when
    None).

    Overrides that choose another file of a group (``model=gpt2_small``, ``+experiment=x``, ``~logging``) take part; the
    others are left to the caller. Raises RunFileError when a file is missing or the list is wrong.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    root = (folder or file.parent).resolve()
    name = file.resolve().relative_to(root).with_suffix("").as_posix()
    choosing = [text for text in overrides if _chooses(text, root)]
    GlobalHydra.instance().clear()
    try:
        # Hydra warns of what its next version will do with this one's rules.
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, initialize_config_dir(str(root), version_base=_version_base(document)):
            loader = GlobalHydra.instance().config_loader()
            found = loader.compute_defaults_list(name, choosing, RunMode.RUN)
    except Exception as error:  # Hydra lets errors of several libraries through, asserts of its own too
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        if mark is not None and (broken := Path(mark.name)).is_file():
            read_document(broken)  # which says what is wrong, and where
        origin = origin_of(("defaults",), document.provenance)
        raise RunFileError([Problem(origin, "defaults", _reason(error, root))]) from None
    composed: YamlDocument | None = None
    for default in found.defaults:
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
    """``document`` with overrides in Hydra's grammar: ``key=value``, ``+key=value``, ``++key=value``, ``~key``.

    Raises RunFileError with every override that is malformed, deletes nothing, or asks for a sweep.
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
    """The override that ``text`` is.

    Raises HydraException where Hydra cannot read it, ValueError where Quintet cannot follow.
    """
    from hydra.core.override_parser.types import OverrideType

    found = _parsed(text)
    key, path = found.key_or_group, parse(found.key_or_group)
    if found.is_sweep_override():
        raise ValueError("is a sweep over several values; give one, a run is one config")
    if found.package is not None:
        raise ValueError(f"names a package of the group {key!r}, and there is no such group")
    if path is None:
        raise ValueError("is no key")
    if path[0] == OWN_SETTINGS:
        raise ValueError("is a setting of Hydra's own jobs and folders, which a run here does not have; leave it out")
    verbs: dict[OverrideType, Verb] = {
        OverrideType.CHANGE: "",
        OverrideType.ADD: "+",
        OverrideType.FORCE_ADD: "++",
        OverrideType.DEL: "~",
    }
    return Override(verbs[found.type], path, found.value())


def _chooses(text: str, root: Path) -> bool:
    """True if an override names a group, which is a folder of ``root``, and no value for it."""
    from hydra.errors import HydraException

    try:
        found = _parsed(text)
    except HydraException:
        return False  # refused when it is applied
    group = found.key_or_group
    is_group = bool(group) and "." not in group and (root / group).is_dir()
    return is_group and not found.is_sweep_override() and not isinstance(found.value(), dict)


def _part(file: Path, package: str) -> YamlDocument:
    """``file`` below ``package``; one that is a list is the value of the package's last step."""
    around, _, last = package.rpartition(".")
    document = read_document(file, list_key=last, may_be_empty=True)
    return _packaged(document, around if document.is_list else package)


def _packaged(document: YamlDocument, package: str) -> YamlDocument:
    """``document`` below ``package``, "" at the top, without its defaults list and Hydra's own settings there."""
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
    found = root / f"{config_path}.yaml"
    try:
        relative = found.relative_to(asked_by.resolve().parent)
    except ValueError:
        return found
    return asked_by.parent / relative


def _version_base(document: YamlDocument) -> str | None:
    """The version of Hydra whose rules a file asks for, None for those of the installed one."""
    asked = lookup(document.values, ("HydraConf", "version_base"))
    return None if asked in (ABSENT, None) else str(asked)


def _reason(error: Exception, root: Path) -> str:
    """Hydra's message on one line, without the list of its search path."""
    text = str(error).partition("Config search path:")[0] or "is no list of defaults that Hydra can read"
    return " ".join(text.split()) + f" (config folder: {root})"
