"""A run config written as YAML, and two of them compared."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

from quintet.config.describe import plain
from quintet.config.keypath import ABSENT, is_list, is_mapping, show
from quintet.config.provenance import Origin, Provenance
from quintet.config.read import line_places
from quintet.config.schema import RunConfig
from quintet.config.secrets import Interpolation, escaped, hidden, without_credentials

# Texts that YAML reads as texts whatever its version: everything else is quoted.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null|nan|inf)$)[a-z][a-z0-9_]*", re.IGNORECASE)
LINES_OF = "# lines are those of "
"""The beginning of the comment that names the file whose lines comments have."""
_NO_LIMIT = 1_000_000  # columns: a comment has no place inside a value that goes on in the next line


def dump_run_config(config: RunConfig) -> str:
    """``config`` as YAML with every value, in the order of the schema; loading it gives an equal
    `RunConfig`, but for credentials. What comes from the environment is its ``${oc.env:…}``."""
    return yaml.dump(
        _escaped(hidden(config)),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )


def dump_with_origins(config: RunConfig, provenance: Provenance) -> str:
    """``config`` as `dump_run_config` writes it, with a comment after each value that says where it comes from: the
    key and line of a dialect's file, the line of another file, the command line; a value without one is a default. A
    comment at the top names the file of the lines that stand without one."""
    files = Counter(origin.file for origin in provenance.values() if origin.file is not None)
    main = files.most_common(1)[0][0] if files else None
    text = yaml.dump(_escaped(hidden(config)), Dumper=_LineDumper, sort_keys=False, allow_unicode=True, width=_NO_LIMIT)
    said: dict[int, dict[str, None]] = {}
    lines = line_places(text)
    sections = {path[:-1] for path in lines if path and isinstance(path[-1], str)}
    for path, number in lines.items():
        if path in provenance and path not in sections:
            said.setdefault(number, {})[_origin(provenance[path], main)] = None
    named = main is not None and any("line " in one for some in said.values() for one in some)
    heading = f"{LINES_OF}{Origin(main).short_file}\n" if named else ""
    return heading + "".join(
        f"{line}  # {'; '.join(said[number])}\n" if number in said else f"{line}\n"
        for number, line in enumerate(text.splitlines(), start=1)
    )


def _origin(origin: Origin, main: str | None) -> str:
    """``origin`` in a comment: the line alone where it is one of the file ``main``."""
    place = f"line {origin.line}" if origin.file == main and origin.line is not None else str(origin)
    if not origin.key:
        return place
    return f"{origin.key} ({place})" if origin.file is None or origin.line is not None else origin.key


def differences(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """The keys at which ``a`` and ``b`` differ, with the value of each; None where one has no such key.

    Lists of equal length differ element by element, others as a whole.
    """
    found: list[tuple[str, Any, Any]] = []
    _compare(without_credentials(plain(a)), without_credentials(plain(b)), (), found)
    return found


def _compare(a: Any, b: Any, path: tuple[str | int, ...], found: list[tuple[str, Any, Any]]) -> None:
    if is_mapping(a) and is_mapping(b):
        for name in {**a, **b}:
            _compare(a.get(name, ABSENT), b.get(name, ABSENT), (*path, name), found)
    elif is_list(a) and is_list(b) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            _compare(one, other, (*path, index), found)
    elif a != b:
        found.append((show(path), None if a is ABSENT else a, None if b is ABSENT else b))


def _escaped(value: Any) -> Any:
    """Texts that hold ``${`` with the backslash that keeps OmegaConf from reading it."""
    if is_mapping(value):
        return {name: _escaped(inner) for name, inner in value.items()}
    if is_list(value):
        return [_escaped(inner) for inner in value]
    if isinstance(value, Interpolation):
        return str(value)
    return escaped(value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Short sections and lists on one line, every text quoted that is not plainly a text."""

    keys_on_a_line = 6

    def ignore_aliases(self, data: Any) -> bool:
        """Never write an anchor: a value that occurs twice is two values."""
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """A list of single values on one line, one of sections on several."""
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(inner, yaml.ScalarNode) for inner in node.value)
        return node

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """A short section of single values on one line, any other on several."""
        node = super().represent_mapping(tag, mapping, flow_style)
        short = len(node.value) <= self.keys_on_a_line
        node.flow_style = short and all(isinstance(inner, yaml.ScalarNode) for _, inner in node.value)
        return node


class _LineDumper(_Dumper):
    """A line for every value, so that each can have a comment."""

    keys_on_a_line = 1


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if _PLAIN.fullmatch(text) else '"'
    tag = "tag:yaml.org,2002:str"
    return dumper.represent_scalar(tag, text, style=style)  # pyright: ignore[reportUnknownMemberType]  (open in the stubs)


_Dumper.add_representer(str, _text)
