"""Merging of run files, of the files that they extend, and of overrides on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quintet.config.describe import default_kinds
from quintet.config.interpolate import Growth, unresolved
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, lookup, parse, show, walk
from quintet.config.names import local_path
from quintet.config.provenance import COMMAND_LINE, Origin, Problem, Provenance, RunFileError, origin_of, shown
from quintet.config.read import UNFIT, YamlDocument, half_character, read_document, scalar_tokens, with_whole_characters
from quintet.errors import UserError, one_line

MISSING = "???"
"""OmegaConf's value for one that must be given elsewhere; merging keeps the value of another file."""

Verb = Literal["", "+", "++", "~"]


def with_bases(document: YamlDocument, file: Path, around: tuple[Path, ...] = ()) -> YamlDocument:
    """Return ``document``, the content of ``file``, merged over the files that it ``extends``, without that key.

    Their paths are relative to the folder of ``file``. Raises RunFileError as `read_document` does, and if a file
    extends itself, directly or through others.
    """
    if "extends" not in document.values:
        return document
    around = (*around, file.resolve())
    origin = document.provenance[("extends",)]
    try:
        bases = [file.parent / local_path(name) for name in _bases(document)]
    except UserError as error:
        raise RunFileError([Problem(origin, "extends", str(error))]) from None
    del document.values["extends"]
    forget(document.provenance, ("extends",))
    merged: YamlDocument | None = None
    for base in bases:
        if base.resolve() in around:
            raise RunFileError([Problem(origin, "extends", f"{base} extends itself, directly or through others")])
        extended = with_bases(read_document(base, origin), base, around)
        merged = extended if merged is None else merge(merged, extended)
    return document if merged is None else merge(merged, document)


def _bases(document: YamlDocument) -> list[str]:
    written = document.values["extends"]
    try:
        Growth(document.values).check(("extends",))
        extends = OmegaConf.create(document.values)["extends"]
        names = list(extends) if OmegaConf.is_list(extends) else [extends]
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(unresolved(str(written), error)) from None
    if not all(isinstance(name, str) and name for name in names):
        raise UserError("must be the name of a file, or a list of names")
    return names


def merge(base: YamlDocument, over: YamlDocument) -> YamlDocument:
    """Return ``base`` with ``over`` merged over it, as OmegaConf merges.

    Sections are merged, also into a section that a reference stands for; everything else is replaced, lists too, and
    ``???`` keeps the value of ``base``. A section to which ``over`` gives another kind is replaced, because the keys of
    the old kind do not belong to it. Raises RunFileError for a list over a section and the reverse.
    """
    below = _kept(base.values, over.values, ())
    try:
        values = OmegaConf.to_container(OmegaConf.merge(below, over.values))
    except OmegaConfBaseException as error:
        path = next((path for path, value in walk(over.values) if _clashes(lookup(base.values, path), value)), ())
        raise RunFileError([Problem(origin_of(path, over.provenance), show(path), _merge_message(error))]) from None
    given = {
        path: over.provenance[path]
        for path, value in walk(over.values)
        if value != MISSING or path not in base.provenance
    }
    return _placed(values, base, given)


def _clashes(old: Any, new: Any) -> bool:
    return is_mapping(old) != is_mapping(new) and is_list(old) != is_list(new)


def _merge_message(error: OmegaConfBaseException) -> str:
    if "Cannot merge" in str(error):
        return "is a list in one place and a section in the other, which do not merge; make them alike"
    return one_line(error, lines=1)


def _kept(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """Return the part of the section ``old`` at ``path`` that merging ``new`` keeps; {} if the kind is another."""
    if new.get("kind") not in (None, old.get("kind", default_kinds().get(path))):
        return {}
    kept = dict(old)
    for name, inner in new.items():
        if is_mapping(inner) and is_mapping(old.get(name)):
            kept[name] = _kept(old[name], inner, (*path, name))
    return kept


def _placed(values: Any, base: YamlDocument, given: Provenance) -> YamlDocument:
    """Return ``values``, made from ``base``, with their origins: those in ``given``, otherwise those of ``base``."""
    provenance = {path: given.get(path) or base.provenance.get(path) or _origin(path, base) for path, _ in walk(values)}
    return YamlDocument(values, provenance)


def _origin(path: KeyPath, base: YamlDocument) -> Origin:
    """Return the origin of the value at ``path``, which a reference in ``base`` brought into its section."""
    config = OmegaConf.create(base.values)
    for length in range(len(path) - 1, 0, -1):
        section = OmegaConf.select(config, show(path[:length]))
        if OmegaConf.is_config(section):
            target = parse(section._get_full_key(None)) or ()
            return origin_of((*target, *path[length:]), base.provenance)
    return origin_of(path, base.provenance)


def forget(provenance: dict[KeyPath, Origin], path: KeyPath) -> None:
    """Remove the origins of ``path`` and of everything inside it."""
    for known in [known for known in provenance if known[: len(path)] == path]:
        del provenance[known]


@dataclass(frozen=True)
class Override:
    """An override on the command line: ``key=value`` sets, ``+key=value`` adds, ``++key=value`` does either, ``~key``
    deletes, ``~key=value`` deletes if that is the value."""

    verb: Verb
    path: KeyPath
    value: Any

    def __str__(self) -> str:
        return self.verb + show(self.path)


def apply_overrides(document: YamlDocument, overrides: Sequence[str]) -> YamlDocument:
    """Return ``document`` with each override ``key.path=value`` applied in order; the value is YAML.

    Raises RunFileError with all overrides that are malformed or cannot be applied.
    """
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value_text = text.partition("=")
        verb: Verb = "~" if key[:1] == "~" else "++" if key[:2] == "++" else "+" if key[:1] == "+" else ""
        path = parse(key.removeprefix(verb))
        if path is None or not (equals or verb == "~"):
            message = f"{text!r} is no override; write key.path=value, for instance train.steps=100"
            problems.append(Problem(COMMAND_LINE, "", message))
            continue
        try:
            document = apply_override(document, Override(verb, path, _value(value_text) if equals else None))
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, show(path), str(error)))
    if problems:
        raise RunFileError(problems)
    return document


def apply_override(document: YamlDocument, override: Override) -> YamlDocument:
    """Return ``document`` with ``override`` applied by Hydra's rules
    (https://hydra.cc/docs/advanced/override_grammar/basic/): a section as the value is merged, a list is replaced.

    Other than in Hydra, a key that the document lacks needs no ``+``, because defaults of the schema need not be in a
    file. Raises ValueError if the override cannot be applied.
    """
    if override.path == ("extends",):
        raise ValueError("belongs in a file; on the command line name several files, of which later ones win")
    override = replace(override, path=_steps(document.values, override))
    try:
        if override.verb == "~":
            return _deleted(document, override.path, override.value)
        return _set(document, override)
    except OmegaConfBaseException as error:
        raise ValueError(_merge_message(error)) from None


def _deleted(document: YamlDocument, path: KeyPath, value: Any) -> YamlDocument:
    config: Any = OmegaConf.create(document.values)
    present = OmegaConf.select(config, show(path), throw_on_missing=False)
    if present is None:
        raise ValueError("is to be deleted, and is not there")
    if value is not None and present != value:
        raise ValueError(f"is to be deleted where it is {shown(value)}, and is {shown(present)}")
    if isinstance(path[-1], int):
        raise ValueError(f"is an element of a list; set the list as a whole: {show(path[:-1])}=[…]")
    around: Any = OmegaConf.select(config, show(path[:-1])) if path[1:] else config
    del around[path[-1]]
    return _placed(OmegaConf.to_container(config), document, {})


def _set(document: YamlDocument, override: Override) -> YamlDocument:
    path, value, old = override.path, override.value, document.values
    config: Any = OmegaConf.create(old)
    adds = override.verb == "+" and not (is_mapping(value) or is_list(value))
    if adds and OmegaConf.select(config, show(path), throw_on_missing=False) is not None:
        raise ValueError(f"is there already, and + adds; write {show(path)}=… to change it")
    here = lookup(old, path)
    if is_mapping(here) and is_mapping(value):
        OmegaConf.update(config, show(path), _kept(here, value, path), merge=False)
    OmegaConf.update(config, show(path), value, merge=True, force_add=bool(override.verb))
    values = OmegaConf.to_container(config)
    given = {path[:length]: COMMAND_LINE for length in range(len(path)) if lookup(old, path[:length]) is ABSENT}
    given |= {inner: COMMAND_LINE for inner, _ in walk(value, path)}
    return _placed(values, document, given)


def _value(text: str) -> Any:
    """Return the YAML value ``text``, read as the only element of a list, so that all YAML values are possible; a plain
    text keeps what YAML would take for a comment."""
    if (problem := half_character(text)) is not None:
        raise ValueError(problem)
    indented = text.replace("\n", "\n  ")
    source = f"- {indented}\n"
    try:
        commented = _has_comment(source)
        elements = [text] if commented else OmegaConf.to_container(OmegaConf.create(with_whole_characters(source)))
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{text!r} is no YAML value ({error.problem}); quote what YAML reads as syntax") from None
    except RecursionError:
        raise ValueError(f"'{text[:40]}…' nests too deep to be a value") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{text!r} is no YAML value ({one_line(error, lines=1)})") from None
    except UNFIT:
        raise ValueError(f"{text!r} does not fit its tag; remove the tag !!…") from None
    if commented and not source[2:].lstrip()[:1].isalnum():
        raise ValueError(f"{text!r} has a # that starts a comment in YAML; quote the text around it")
    assert is_list(elements)
    if len(elements) != 1:
        raise ValueError(f"{text!r} is no single YAML value")
    for path, value in walk(elements[0]):
        for part in (*path[-1:], value):
            if isinstance(part, str) and (problem := half_character(part)) is not None:
                raise ValueError(problem)
    return elements[0]


def _has_comment(source: str) -> bool:
    """True if a ``#`` of the YAML ``source`` is outside its scalars."""
    if "#" not in source:
        return False
    spans = [(token.start_mark.index, token.end_mark.index) for token in scalar_tokens(source)]
    return any(
        not any(start <= index < end for start, end in spans) for index, mark in enumerate(source) if mark == "#"
    )


def _steps(values: Any, override: Override) -> KeyPath:
    """Return the path of ``override`` in ``values``: a number is an index of a list, and otherwise, with a verb such as
    ``+``, the name of a key.

    Raises ValueError unless the path leads through sections and existing elements of lists.
    """
    here, steps = values, list(override.path)
    for position, step in enumerate(steps):
        before = show(tuple(steps[:position]))
        if is_list(here) and isinstance(step, str):
            raise ValueError(f"{before} is a list; say which element: {before}[0].{show(tuple(steps[position:]))}")
        if is_list(here) and step not in range(len(here)):
            raise ValueError(f"{before} has {len(here)} elements, counted from 0")
        if not is_list(here) and isinstance(step, int):
            if not override.verb:
                raise ValueError(f"{before or 'the top'} is no list here; set the list as a whole: {before}=[…]")
            steps[position] = step = str(step)
        if not override.verb and isinstance(here, str) and "${" in here:
            raise ValueError(f"{before} is {here!r}; set it as a whole")
        here = lookup(here, (step,))
    return tuple(steps)
