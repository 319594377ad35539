"""Plain text files as documents."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from quintet.config.documents import TextConfig, WholeText
from quintet.data.sources.compressed import BadFile, blocks, is_compressed
from quintet.data.sources.document import Document, Report, TextPiece
from quintet.data.sources.files import File
from quintet.data.sources.rows import text_maker
from quintet.data.sources.spans import ByteRange, cut, line_of, open_file, read
from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.long_texts import cut_text

_READ = 1 << 20
PIECE = 1 << 22  # characters
_BOM = "\ufeff"
WHOLE = WholeText()


@dataclass(frozen=True)
class TextUnit:
    """Whole small files, or a part of a large one; compressed files are read as a whole. ``strict`` says that what is
    no UTF-8 is an error, not left out."""

    spans: tuple[ByteRange, ...]
    strict: bool
    separator: str | None
    document: TextConfig = WHOLE

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(span.size for span in self.spans)

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        first, last = self.spans[0], self.spans[-1]
        return first.path if first == last else f"{first.path} to {last.path}"


def text_units(
    files: list[File],
    separator: str | None,
    length: int,
    document: TextConfig = WHOLE,
    on_error: str = "stop",
) -> tuple[list[TextUnit], list[str]]:
    """Work units of about ``length`` bytes in the order of ``files``, and the files left out because they are no text.

    Only where a ``separator`` cuts documents can a file be cut into units. A file that was found in a folder is then
    looked through before, because it is left out as a whole or not at all.
    """
    units: list[TextUnit] = []
    left_out: list[str] = []
    group: list[ByteRange] = []
    filled, strict = 0, False

    def close_group() -> None:
        if group:
            units.append(TextUnit(tuple(group), strict, separator, document))
            group.clear()

    for file in files:
        large = separator is not None and file.size > length and not is_compressed(file.path)
        named = file.named and on_error == "stop"
        if large or named != strict or filled + file.size > length:
            close_group()
            filled, strict = 0, named
        if not large:
            group.append(ByteRange(file.path, 0, file.size))
            filled += file.size
        elif not named and not _is_text_file(file.path):
            left_out.append(file.path)
        else:
            assert separator is not None
            spans = cut(file.path, file.size, separator.encode("utf-8"), length)
            units.extend(TextUnit((span,), True, separator, document) for span in spans)
    close_group()
    return units, left_out


def text_documents(unit: TextUnit, report: Report, tokenizer: Tokenizer | None = None) -> Iterator[Document]:
    """Documents of ``unit``, empty ones included; the names of files that are no text are added to ``report``.

    A large file that is one document comes in pieces, unless ``tokenizer`` needs it whole. Raises UserError with file,
    line and byte for a named file that is not UTF-8.
    """
    make = text_maker(unit.document)
    in_pieces = unit.separator is None and unit.document == WHOLE and (tokenizer is None or tokenizer.can_cut)
    for span in unit.spans:
        if in_pieces and span.size > PIECE and not is_compressed(span.path):
            yield from _pieces(unit, span, report)
            continue
        for text in _texts(unit, span, report):
            document = make(text)
            if document is None:
                report.dropped["without_separator"] += 1
            else:
                yield document


def _pieces(unit: TextUnit, span: ByteRange, report: Report) -> Iterator[TextPiece]:
    """The text of a file in pieces of about ``PIECE`` characters, so that no more of it is in memory."""
    if not unit.strict and not _is_text_file(span.path):
        report.left_out.append(span.path)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, offset, begun = "", 0, False
    with open_file(span.path) as file:
        while data := file.read(_READ):
            try:
                text += decoder.decode(data)
            except UnicodeDecodeError as error:
                raise _not_utf8(
                    ByteRange(span.path, offset - len(error.object) + len(data), span.stop), error
                ) from None
            if text and not begun:
                text, begun = text.removeprefix(_BOM), True
            offset += len(data)
            if len(text) > 2 * PIECE:
                *parts, text = cut_text(text, PIECE)
                yield from (TextPiece(part, True) for part in parts)
    try:
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(ByteRange(span.path, offset - len(error.object), span.stop), error) from None
    yield TextPiece(text, False)


def _texts(unit: TextUnit, span: ByteRange, report: Report) -> Iterator[str]:
    try:
        data = b"".join(blocks(span.path)) if is_compressed(span.path) else read(span)
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if unit.strict:
            raise _not_utf8(span, error) from None
        report.left_out.append(span.path)
        return
    except BadFile:
        if unit.strict:
            raise
        report.left_out.append(span.path)
        return
    if not unit.strict and "\0" in text:
        report.left_out.append(span.path)
        return
    if span.start == 0:
        text = text.removeprefix(_BOM)
    if unit.separator is None:
        yield text
        return
    documents = text.split(unit.separator)
    report.matched["separator"] += len(documents) - 1
    if not documents[-1]:
        documents.pop()
    yield from documents


def _not_utf8(span: ByteRange, error: UnicodeDecodeError) -> UserError:
    offset = span.start + error.start
    line = error.object.count(b"\n", 0, error.start) + 1 if is_compressed(span.path) else line_of(span.path, offset)
    return UserError(
        f"{span.path}:{line}: byte {offset} (0x{error.object[error.start]:02x}) is not UTF-8; "
        "convert the file, for instance with iconv -t UTF-8, or name its folder, of which only text is read"
    )


def _is_text_file(path: str) -> bool:
    """Whether the file is UTF-8 without a zero byte (which is how git and grep tell binary files)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_file(path) as file:
        try:
            while data := file.read(_READ):
                if b"\0" in data:
                    return False
                decoder.decode(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
