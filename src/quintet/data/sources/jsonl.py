"""JSON lines as documents (https://jsonlines.org: UTF-8, one JSON value a line)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from quintet.data.sources.files import File
from quintet.data.sources.spans import Span, cut, line_of, read, records
from quintet.errors import UserError
from quintet.tokenize.base import check_text

_BOM = b"\xef\xbb\xbf"
_MOST_NAMES = 10


@dataclass(frozen=True)
class JsonlUnit:
    """Whole lines of one or several files."""

    spans: tuple[Span, ...]
    field: str

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(span.size for span in self.spans)

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        first, last = self.spans[0], self.spans[-1]
        return first.path if first.path == last.path else f"{first.path} to {last.path}"


def jsonl_units(files: list[File], field: str, length: int) -> list[JsonlUnit]:
    """Work units of about ``length`` bytes: large files are cut between lines, small ones are read together."""
    units: list[JsonlUnit] = []
    group: list[Span] = []
    filled = 0
    for file in files:
        for span in cut(file.path, file.size, b"\n", length):
            if group and filled + span.size > length:
                units.append(JsonlUnit(tuple(group), field))
                group, filled = [], 0
            group.append(span)
            filled += span.size
    return [*units, JsonlUnit(tuple(group), field)] if group else units


def jsonl_documents(unit: JsonlUnit) -> Iterator[str]:
    """Documents of ``unit``, empty ones included. Lines of white space are passed over.

    Raises UserError with file and line for what is no JSON object or has no text in the field.
    """
    for span in unit.spans:
        for offset, line in records(read(span), b"\n"):
            if span.start + offset == 0:
                line = line.removeprefix(_BOM)
            if line and not line.isspace():
                yield _text(line, unit.field, span, offset)


def _text(line: bytes, field: str, span: Span, offset: int) -> str:
    def problem(what: str) -> UserError:
        return UserError(f"{span.path}:{line_of(span.path, span.start + offset)}: {what}")

    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise problem(f"byte {error.start} of the line is not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise problem(f"is no JSON ({error.msg} at character {error.pos}); correct or remove the line") from None
    if not isinstance(value, dict):
        raise problem(
            f"is {_kind(value)}, not a JSON object; each line must be one, such as {{{json.dumps(field)}: …}}"
        )
    if field not in value:
        names = ", ".join(list(value)[:_MOST_NAMES]) or "no field at all"
        raise problem(
            f"has no field {field!r} (it has {names}); set `field` of the source to the one that holds the text"
        )
    text = value[field]
    if not isinstance(text, str):
        raise problem(
            f"field {field!r} holds {_kind(text)}, not text; set `field` to one that does, or remove the line"
        )
    if b"\\u" in line:
        try:
            check_text(text)
        except UserError as error:
            raise problem(str(error)) from None
    return text


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names[type(value)]
