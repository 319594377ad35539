"""Values that are never written to a run folder or sent to a tracker: those of environment variables, which become
``${oc.env:…}`` again, and credentials, which become ``***``."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quintet.config.describe import plain
from quintet.config.interpolate import references
from quintet.config.keypath import KeyPath, is_list, is_mapping, lookup, show, walk
from quintet.config.read import YamlDocument
from quintet.config.schema import RunConfig
from quintet.errors import MASK, UserError, is_secret, without_secrets

_VARIABLE = re.compile(r"\$\{\s*oc\.env:\s*['\"]?([^,'\"\s{}]+)['\"]?\s*[,}]")
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_LINE = re.compile(r"^([ \t-]*([\w.-]+)[ \t]*:[ \t]+)([^\s#&*!|>\[{][^\n#]*)", re.MULTILINE)
_SHORTEST_PART = 6  # characters from which on a variable's value is searched for inside texts
_REMEMBERED = "from the environment"


class Interpolation(str):
    """A text whose ``${…}`` are interpolations and must not be escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class FromEnvironment:
    """The texts of a run that come from environment variables.

    ``texts`` maps each to what is written instead, and ``variables`` does so for the values of single variables.
    ``paths`` are the paths of the texts, or None for a dialect's file, whose texts are at other native paths. ``unset``
    maps paths of a run's own file to the names of variables that are not set.
    """

    paths: frozenset[KeyPath] | None = frozenset()
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    unset: Mapping[KeyPath, str] = field(default_factory=dict[KeyPath, str])

    def written(self, text: str, path: KeyPath) -> str:
        """Return what is written for ``text`` at ``path``."""
        native = self.paths is None or path in self.paths or path[:-1] in self.paths
        if native and text in self.texts:
            return Interpolation(self.texts[text])
        long = {value: name for value, name in self.variables.items() if len(value) >= _SHORTEST_PART}
        if self.paths is None and (written := _named(text, long)) != escaped(text):
            return Interpolation(written)
        return text


def from_environment(document: YamlDocument, values: Mapping[str, Any], native: bool) -> FromEnvironment:
    """Return the texts of ``values``, which are those of ``document`` resolved, that come from the environment."""
    texts: dict[str, str] = {}
    variables: dict[str, str] = {}
    paths: set[KeyPath] = set()
    unset: dict[KeyPath, str] = {}
    for path, text in walk(document.values):
        names = list(_variables(document.values, path, set())) if isinstance(text, str) and "${" in text else []
        found = {value: f"${{oc.env:{name}}}" for name in names if (value := os.environ.get(name))}
        resolved = lookup(values, path)
        if not isinstance(resolved, str):
            continue
        if resolved == text and (missing := [name for name in names if name not in os.environ]):
            unset[path] = missing[0]
        if found and (written := _named(resolved, found)) != escaped(resolved):
            texts[resolved] = written
            paths.add(path)
            variables |= found
    return FromEnvironment(frozenset(paths) if native else None, texts, variables, unset)


def _variables(values: dict[str, Any], path: KeyPath, seen: set[KeyPath]) -> Iterator[str]:
    """Yield the environment variables that the value at ``path`` names, directly or through other keys."""
    if path in seen:
        return
    seen.add(path)
    for inner, text in walk(lookup(values, path), path):
        if isinstance(text, str):
            yield from _VARIABLE.findall(text)
            for named in references(values, text, inner):
                yield from _variables(values, named, seen)


def _named(text: str, variables: Mapping[str, str]) -> str:
    """Return ``text`` with each value of ``variables`` replaced by its interpolation, and everything else escaped."""
    if not variables:
        return escaped(text)
    values = sorted(variables, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, values))})", text)
    return "".join(variables.get(piece) or escaped(piece) for piece in pieces)


def escaped(text: str) -> str:
    """Return ``text`` with backslashes, so that OmegaConf reads no interpolation in it."""
    return _INTERPOLATION.sub(lambda match: match[1] * 2 + "\\${", text)


def remember(config: RunConfig, found: FromEnvironment) -> None:
    """Attach ``found`` to ``config`` for `hidden`; copies of ``config`` keep it."""
    vars(config)[_REMEMBERED] = found  # not a field, because configs with equal values are equal whatever their files


def hidden(config: RunConfig) -> Any:
    """Return the plain values of ``config`` without secrets, which may be written to files."""
    found: FromEnvironment = vars(config).get(_REMEMBERED) or FromEnvironment()
    return _hidden(plain(config), (), found)


def without_credentials(values: Any) -> Any:
    """Return the plain ``values`` of a run with ``***`` in place of credentials."""
    return _hidden(values, (), FromEnvironment())


def _hidden(value: Any, path: KeyPath, found: FromEnvironment) -> Any:
    if is_mapping(value):
        return {name: _hidden(inner, (*path, name), found) for name, inner in value.items()}
    if is_list(value):
        return [_hidden(inner, (*path, index), found) for index, inner in enumerate(value)]
    if not isinstance(value, str) or not value:
        return value
    written = found.written(value, path)
    if isinstance(written, Interpolation):
        return written
    names = [step for step in path if isinstance(step, str)]
    return MASK if names and is_secret(names[-1]) else without_secrets(value)


def file_without_credentials(content: bytes) -> bytes:
    """Return the bytes of a run file with ``***`` in place of credentials; other bytes than text stay as they are."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content

    def masked(match: re.Match[str]) -> str:
        name, value = match[2].rpartition(".")[2], match[3].strip()
        kept = "${" in value or value in ("null", "~")
        return f"{match[1]}{MASK}" if is_secret(name) and not kept else match[0]

    return without_secrets(_LINE.sub(masked, text)).encode("utf-8")


def check_secrets(config: RunConfig) -> None:
    """Raise UserError for each secret that the run of ``config`` needs and that its run folder does not hold."""
    found: FromEnvironment = vars(config).get(_REMEMBERED) or FromEnvironment()
    problems = [
        f"{show(path)}: the environment variable {name} is not set, with which the run started; set it"
        for path, name in found.unset.items()
    ]
    for path, text in walk(plain(config)):
        if isinstance(text, str) and (text == MASK or re.search(r"//\*\*\*@|=\*\*\*(&|$)", text)):
            key = show(path)
            problems.append(
                f"{key}: has {MASK} in place of a secret, which is not saved; give it again as {key}=…, or in the "
                "run file as ${oc.env:NAME}, which is read each time"
            )
    if problems:
        raise UserError(*problems)
