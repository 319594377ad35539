"""Reading of one YAML file: its values, as OmegaConf reads them, and their lines."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml.composer import Composer

from quintet.config.keypath import KeyPath, is_list, is_mapping, show
from quintet.config.provenance import Origin, Problem, RunFileError
from quintet.errors import one_line

_YAML: Any = yaml  # its stubs do not type composing and scanning
_DEEPEST, _MOST_VALUES, _MOST_DIGITS = 60, 20_000, 4000
_WANDB = "_wandb"
_RECORD = (
    "the file is Weights & Biases' record of a run, with each value under `value`, and not a run file; name the file "
    "with which the run was started"
)
_MERGE = "tag:yaml.org,2002:merge"
_ESCAPES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\.", re.DOTALL)
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9_]+[eE][-+]?[0-9]+")
"""A number for OmegaConf, but a text for YAML 1.1."""
UNFIT = (AttributeError, KeyError, TypeError, ValueError)
"""What PyYAML raises for a value that does not fit its tag, such as !!int x."""
_HALF = re.compile(r"[\ud800-\udfff]")
_read: ContextVar[dict[Path, bytes] | None] = ContextVar("the files that were read", default=None)


@contextmanager
def files_read() -> Generator[dict[Path, bytes]]:
    """Collect the contents of all run files that are read within the context, by resolved path."""
    contents: dict[Path, bytes] = {}
    token = _read.set(contents)
    try:
        yield contents
    finally:
        _read.reset(token)


@dataclass(frozen=True)
class YamlDocument:
    """A file's values before interpolation, with the origin of each key and list element.

    ``is_list``: the file is a list, which is its only value. ``not_here`` are files that it names and this machine
    lacks.
    """

    values: dict[str, Any]
    provenance: dict[KeyPath, Origin]
    is_list: bool = False
    not_here: list[Problem] = field(default_factory=list[Problem])

    def apart(self, name: str) -> tuple[YamlDocument, YamlDocument]:
        """Return the section ``name``, and the document without it."""
        inner = {path[1:]: origin for path, origin in self.provenance.items() if path[:1] == (name,)}
        others = {path: origin for path, origin in self.provenance.items() if path[:1] != (name,)}
        rest = {key: value for key, value in self.values.items() if key != name}
        return YamlDocument(self.values[name], inner), YamlDocument(rest, others)


def read_document(
    file: Path, asked_at: Origin | None = None, list_key: str = "", may_be_empty: bool = False
) -> YamlDocument:
    """Read one run file; ``asked_at`` is the place where another file names it.

    A file that is a list is read as the value of ``list_key``, if given. Raises RunFileError if the file cannot be
    read, is not YAML, is not a mapping of keys to values, or is empty, unless it ``may_be_empty``.
    """
    text = _text(file, asked_at)
    name = str(file)
    try:
        text = with_whole_characters(text)
        root = _composed(text)
    except yaml.YAMLError as error:
        raise RunFileError([_syntax_problem(name, text, error)]) from None
    except RecursionError:
        raise RunFileError([Problem(Origin(name), "", f"nests more than {_DEEPEST} levels")]) from None
    if root is not None:
        _check_extent(name, root)
    if root is None and may_be_empty:
        return YamlDocument({}, {(): Origin(name)})
    if root is None:
        raise RunFileError([Problem(Origin(name), "", "the file is empty; a run file needs at least data and train")])
    listed = isinstance(root, yaml.SequenceNode) and bool(list_key)
    if not listed and root.tag != "tag:yaml.org,2002:map":
        form = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        if isinstance(root, yaml.MappingNode):
            form = f"tagged {root.tag.rpartition(':')[2]}"
        origin = Origin(name, root.start_mark.line + 1)
        raise RunFileError([Problem(origin, "", f"a run file is a mapping of keys to values, this one is {form}")])
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == _WANDB:
            raise RunFileError([Problem(Origin(name, key.start_mark.line + 1), _WANDB, _RECORD)])
    reading = _Lines(name, {(): Origin(name, root.start_mark.line + 1)}, [], [])
    if listed:
        reading.provenance[(list_key,)] = reading.provenance[()]
    reading.visit(root, (list_key,) if listed else ())
    if reading.problems:
        raise RunFileError(reading.problems)
    try:
        values = _values(text)
    except yaml.YAMLError as error:
        raise RunFileError([_syntax_problem(name, text, error)]) from None
    except OmegaConfBaseException as error:
        origin = reading.provenance[()]
        raise RunFileError([Problem(origin, error.full_key or "", one_line(error, lines=1))]) from None
    except UNFIT as error:
        raise RunFileError([_tag_problem(name, root, error)]) from None
    if listed:
        values = {list_key: values}
    assert is_mapping(values)
    return YamlDocument({str(key): value for key, value in values.items()}, reading.provenance, listed)


def _composed(text: str) -> yaml.Node | None:
    """Return the root of the YAML ``text``, None if it is empty. Raises YAMLError."""
    if yaml.__with_libyaml__:
        try:
            return _fast_composer()(text).get_single_node()
        except (yaml.YAMLError, UnicodeEncodeError):
            pass  # PyYAML's own parser has better messages, and accepts what only libyaml refuses
    return _YAML.compose(text, Loader=yaml.SafeLoader)


@cache
def _fast_composer() -> Any:
    """PyYAML's composer with libyaml's parser, which is ten times as fast as PyYAML's: 1 ms for a whole run file."""

    class FastComposer(Composer, yaml.CSafeLoader):
        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

    return FastComposer


def _values(text: str) -> Any:
    """Return the values of the YAML ``text`` as OmegaConf reads them. Raises YAMLError, OmegaConfBaseException and
    `UNFIT`."""
    # libyaml accepts tabs and question marks that PyYAML refuses.
    if yaml.__with_libyaml__ and "\t" not in text and "?" not in text:
        try:
            return _copied(_YAML.load(text, Loader=_fast_loader()))
        except (yaml.YAMLError, *UNFIT, _NotPlain):
            pass  # OmegaConf has the message, and accepts other values
    return OmegaConf.to_container(OmegaConf.create(text))


@cache
def _fast_loader() -> Any:
    """OmegaConf's rules for numbers with libyaml's parser, which reads a valid file in a tenth of the time."""

    class FastLoader(yaml.CSafeLoader):
        yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    return FastLoader


class _NotPlain(Exception):
    """A value that is not JSON."""


def _copied(value: Any) -> Any:
    """Return a copy of the plain ``value`` in which aliases share nothing. Raises _NotPlain."""
    if is_mapping(value):
        return {name: _copied(inner) for name, inner in value.items()}
    if is_list(value):
        return [_copied(inner) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise _NotPlain


def scalar_tokens(text: str) -> Iterator[yaml.ScalarToken]:
    """Yield the scalars of the YAML ``text`` with their positions. Raises YAMLError."""
    return (token for token in _YAML.scan(text, Loader=yaml.SafeLoader) if isinstance(token, yaml.ScalarToken))


def _check_extent(file: str, root: yaml.Node) -> None:
    """Raise RunFileError if ``file`` nests too deep, or if its aliases expand to far more values than it has: a few
    lines can expand to more than fits in memory."""
    counts: dict[int, int] = {}  # values of each node; 1 while it is being counted, because it may contain itself

    def count(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise RunFileError([Problem(_line_of(file, node), "", f"nests more than {_DEEPEST} levels")])
        if id(node) not in counts:
            counts[id(node)] = 1
            counts[id(node)] += sum(count(part, depth + 1) for part in _parts(node))
            if counts[id(node)] > max(_MOST_VALUES, 10 * len(counts)):
                message = f"its aliases (*name) stand for more than {_MOST_VALUES:,} values"
                raise RunFileError([Problem(_line_of(file, node), "", message)])
        return counts[id(node)]

    count(root, 0)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes directly in ``node``: elements, or keys and values."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _line_of(file: str, node: yaml.Node) -> Origin:
    return Origin(file, node.start_mark.line + 1)


def with_whole_characters(text: str) -> str:
    """Return the YAML ``text`` with one escape for each character that JSON writes as two (RFC 8259, section 7), which
    YAML would read as two characters. Raises YAMLError."""
    if "\\u" not in text:
        return text
    pieces: list[str] = []
    at = 0
    for token in scalar_tokens(text):
        if token.style == '"':
            start, end = token.start_mark.index, token.end_mark.index
            pieces += [text[at:start], _ESCAPES.sub(_one_escape, text[start:end])]
            at = end
    return "".join([*pieces, text[at:]])


def _one_escape(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    return f"\\U{0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00:08x}"


def half_character(text: str) -> str | None:
    """Return the message on a ``text`` with half of a character (a surrogate), None if it has none."""
    found = _HALF.search(text)
    if found is None:
        return None
    escape = f"\\u{ord(found[0]):04x}"
    return f"character {found.start()} is {escape}, half of a character without its other half; write the whole one"


def line_places(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1 on, of each key and list element of the valid YAML ``text``.

    >>> line_places("{sources: [x], seed: 1}")
    {('sources',): 1, ('sources', 0): 1, ('seed',): 1}
    """
    root = _composed(text)
    assert root is not None
    reading = _Lines("", {}, [], [])
    reading.visit(root, ())
    return {path: origin.line for path, origin in reading.provenance.items() if origin.line is not None}


def _text(file: Path, asked_at: Origin | None) -> str:
    origin, prefix = (Origin(str(file)), "") if asked_at is None else (asked_at, f"extends {file}: ")
    try:
        if file.is_dir():
            raise RunFileError([Problem(origin, "", f"{prefix}is a folder; name the run file in it")])
        content = file.read_bytes()
        if (read := _read.get()) is not None:
            read[file.resolve()] = content
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RunFileError([Problem(origin, "", f"{prefix}no such file")]) from None
    except UnicodeDecodeError as error:
        problem = Problem(origin, "", f"{prefix}is not UTF-8 text (byte {error.start}); save it as UTF-8")
        raise RunFileError([problem]) from None
    except OSError as error:
        raise RunFileError([Problem(origin, "", f"{prefix}cannot be read: {error.strerror}")]) from None


def _syntax_problem(name: str, text: str, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        message = error.problem or "is no YAML"
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        message = f"character #x{error.character:04x} is not allowed in YAML"
    else:
        line, message = None, str(error)
    found = text.splitlines()[line - 1] if line is not None and line <= len(text.splitlines()) else ""
    if "\t" in found[: len(found) - len(found.lstrip())]:
        message = "YAML is indented with spaces, not with tabs"
    elif "${" in found and "{" in found.replace("${", ""):
        message += '; between { } an interpolation stands in quotes: "${…}"'
    return Problem(Origin(name, line), "", message)


def _tag_problem(name: str, root: yaml.Node, error: Exception) -> Problem:
    """Return the problem of the first value in ``root`` that does not fit its tag; ``error`` is what PyYAML raised."""
    for node in _nodes(root):
        try:
            get_yaml_loader()("").construct_object(node, deep=True)
        except yaml.YAMLError:
            continue
        except UNFIT:
            value = f"{node.value!r}" if isinstance(node, yaml.ScalarNode) else "this value"
            return Problem(
                _line_of(name, node),
                "",
                f"{value} does not fit its tag !!{node.tag.rpartition(':')[2]}; remove the tag",
            )
    return Problem(_line_of(name, root), "", one_line(error, typed=True))


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield all nodes in ``node``, the inner ones first."""
    for part in _parts(node):
        yield from _nodes(part)
    yield node


@dataclass(frozen=True)
class _Lines:
    """A walk over YAML nodes that records lines, and reports what a dictionary would hide, such as a key given
    twice."""

    file: str
    provenance: dict[KeyPath, Origin]
    problems: list[Problem]
    inside: list[int]  # ids of the nodes around the current one, to find anchors that contain themselves

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Record the lines of everything in ``node``, the value at ``path``."""
        if id(node) in self.inside:
            self._report(node, path, "the anchor contains itself")
            return
        self.inside.append(id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, inner in enumerate(node.value):
                self.provenance[(*path, index)] = self._place(inner)
                self.visit(inner, (*path, index))
        elif isinstance(node, yaml.ScalarNode) and (problem := half_character(node.value)) is not None:
            self._report(node, path, problem)
        elif isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
            self._report(node, path, f"has {len(node.value):,} digits, more than any number can have")
        elif isinstance(node, yaml.ScalarNode) and "${" in node.value:
            self._interpolation(node, path)
        self.inside.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        own: dict[str, int] = {}
        # Merge keys first, because own keys override them.
        for key, value in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):
            if key.tag == _MERGE:
                for source in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    self.visit(source, path)
                continue
            if key.tag != "tag:yaml.org,2002:str" or (not key.style and _EXPONENT.fullmatch(key.value)):
                shown = f"{key.value!r} is" if isinstance(key, yaml.ScalarNode) else "a mapping or list is"
                self._report(key, path, f"keys are names, and {shown} not one in YAML; quote it, or remove the braces")
                continue
            if (problem := half_character(key.value)) is not None:
                self._report(key, path, f"a key: {problem}")
                continue
            line = key.start_mark.line + 1
            if key.value in own:
                self._report(key, (*path, key.value), f"is given twice, first in line {own[key.value]}; keep one")
            own[key.value] = line
            self.provenance[(*path, key.value)] = Origin(self.file, line)
            self.visit(value, (*path, key.value))

    def _interpolation(self, node: yaml.ScalarNode, path: KeyPath) -> None:
        try:
            OmegaConf.create({"value": node.value})
        except OmegaConfBaseException:
            self._report(node, path, f"{node.value!r} is not a whole ${{…}}; write \\${{ for the characters themselves")

    def _report(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._place(node), show(path), message))

    def _place(self, node: yaml.Node) -> Origin:
        return Origin(self.file, node.start_mark.line + 1)
