"""Writing of a run config as YAML, and comparison of two configs."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from quintet.config.describe import plain
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, show
from quintet.config.provenance import Origin, Provenance
from quintet.config.read import line_places
from quintet.config.schema import RunConfig
from quintet.config.secrets import Interpolation, escaped, hidden, without_credentials

# Texts that all versions of YAML read as texts; others are quoted.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null|nan|inf)$)[a-z][a-z0-9_]*", re.IGNORECASE)
LINES_OF = "# lines are those of "
"""The start of the comment that names the file to which line numbers in comments refer."""
_NO_LIMIT = 1_000_000  # columns, so that no value is wrapped, because a wrapped value could have no comment


def dump_run_config(config: RunConfig) -> str:
    """Return ``config`` as YAML with all values, in the order of the schema. Loading it gives an equal `RunConfig`,
    except for credentials; values of environment variables are written as ``${oc.env:…}``."""
    return yaml.dump(
        _escaped(hidden(config)),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )


def dump_with_origins(config: RunConfig, provenance: Provenance) -> str:
    """Return ``config`` as `dump_run_config` does, with a comment after each value that is not a default: the line of a
    file, with the key of a dialect's file, or the command line. A comment at the top names the file of lines without a
    file."""
    files = Counter(origin.file for origin in provenance.values() if origin.file is not None)
    main = files.most_common(1)[0][0] if files else None
    text = yaml.dump(_escaped(hidden(config)), Dumper=_LineDumper, sort_keys=False, allow_unicode=True, width=_NO_LIMIT)
    comments: dict[int, dict[str, None]] = {}
    lines = line_places(text)
    sections = {path[:-1] for path in lines if path and isinstance(path[-1], str)}
    for path, number in lines.items():
        if path in provenance and path not in sections:
            comments.setdefault(number, {})[_origin(provenance[path], main)] = None
    refers = any("line " in origin for origins in comments.values() for origin in origins)
    heading = f"{LINES_OF}{Origin(main).short_file}\n" if main is not None and refers else ""
    return heading + "".join(
        f"{line}  # {'; '.join(comments[number])}\n" if number in comments else f"{line}\n"
        for number, line in enumerate(text.splitlines(), start=1)
    )


def _origin(origin: Origin, main: str | None) -> str:
    """Return ``origin`` for a comment, without the file if that is ``main``."""
    place = f"line {origin.line}" if origin.file == main and origin.line is not None else str(origin)
    if not origin.key:
        return place
    return f"{origin.key} ({place})" if origin.file is None or origin.line is not None else origin.key


def differences(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ between ``a`` and ``b``, with both values; None for a key that one lacks.

    Lists of equal length are compared element by element, others as a whole.
    """
    return list(_compare(without_credentials(plain(a)), without_credentials(plain(b)), ()))


def _compare(a: Any, b: Any, path: KeyPath) -> Iterator[tuple[str, Any, Any]]:
    if is_mapping(a) and is_mapping(b):
        for name in {**a, **b}:
            yield from _compare(a.get(name, ABSENT), b.get(name, ABSENT), (*path, name))
    elif is_list(a) and is_list(b) and len(a) == len(b):
        for index, (element, other) in enumerate(zip(a, b, strict=True)):
            yield from _compare(element, other, (*path, index))
    elif a != b:
        yield show(path), None if a is ABSENT else a, None if b is ABSENT else b


def _escaped(value: Any) -> Any:
    """Return ``value`` with ``${`` escaped in all texts that are not interpolations."""
    if is_mapping(value):
        return {name: _escaped(inner) for name, inner in value.items()}
    if is_list(value):
        return [_escaped(inner) for inner in value]
    if isinstance(value, Interpolation):
        return str(value)
    return escaped(value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """YAML with short sections and lists on one line, and quotes around texts that YAML could read as something
    else."""

    keys_on_a_line = 6

    def ignore_aliases(self, data: Any) -> bool:
        """Never write anchors for values that occur twice."""
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Write a list of plain values on one line, and a list of sections on several."""
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = all(isinstance(inner, yaml.ScalarNode) for inner in node.value)
        return node

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Write a short section of plain values on one line, and other sections on several."""
        node = super().represent_mapping(tag, mapping, flow_style)
        short = len(node.value) <= self.keys_on_a_line
        node.flow_style = short and all(isinstance(inner, yaml.ScalarNode) for _, inner in node.value)
        return node


class _LineDumper(_Dumper):
    """YAML with one line per value, so that each can have a comment."""

    keys_on_a_line = 1


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if _PLAIN.fullmatch(text) else '"'
    tag = "tag:yaml.org,2002:str"
    return dumper.represent_scalar(tag, text, style=style)  # pyright: ignore[reportUnknownMemberType]  (open in the stubs)


_Dumper.add_representer(str, _text)
