"""Plain text as documents: files, and the standard library of the running Python."""

import codecs
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quintet.config.documents import TextConfig, WholeText
from quintet.config.sources import PythonStdlibSource, TextSource
from quintet.data.sources.base import Document, Reader, Report, SourceIndex, TextPiece, WorkUnit
from quintet.data.sources.files import File, PassedOver, described, walk
from quintet.data.sources.reading import BadFile, ByteRange, blocks, cut, is_compressed, line_of, open_file, read
from quintet.data.sources.rows import text_maker
from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer, cut_text

_READ = 1 << 20
PIECE = 1 << 22  # characters
_BOM = "\ufeff"

# Folders that are not part of the library: installed packages, and tests, which are 19 of 31 MB in CPython 3.11. Many
# systems package the tests separately, so with them the corpus would differ from machine to machine; and much of them
# is generated tables, deliberately broken encodings and Python 2.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class TextPart:
    """Small files, or a part of a large one; compressed files are read as a whole. ``strict``: a file that is not UTF-8
    is an error, and not skipped."""

    spans: tuple[ByteRange, ...]
    strict: bool


class TextReader(Reader[TextSource | PythonStdlibSource, TextPart]):
    """Text files; files of a folder that are no text are skipped."""

    def __init__(self, source: TextSource | PythonStdlibSource) -> None:
        super().__init__(source)
        self.separator: str | None = getattr(source, "separator", None)
        self.document: TextConfig = getattr(source, "document", WholeText())
        self.stops = getattr(source, "on_error", "stop") == "stop"

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[TextPart]], list[str]]:
        """Group small files, and cut large ones at separators; without a separator a file is one document. A large file
        of a folder is read first, because it is skipped as a whole or not at all."""
        units: list[WorkUnit[TextPart]] = []
        left_out: list[str] = []
        group: list[ByteRange] = []
        filled, strict = 0, False

        def close_group() -> None:
            if group:
                units.append(self._unit(tuple(group), strict))
                group.clear()

        for file in index.files:
            large = self.separator is not None and file.size > length and not is_compressed(file.path)
            named = file.named and self.stops
            if large or named != strict or filled + file.size > length:
                close_group()
                filled, strict = 0, named
            if not large:
                group.append(ByteRange(file.path, 0, file.size))
                filled += file.size
            elif not named and not _is_text_file(file.path):
                left_out.append(file.path)
            else:
                assert self.separator is not None
                spans = cut(file.path, file.size, self.separator.encode("utf-8"), length)
                units.extend(self._unit((span,), True) for span in spans)
        close_group()
        return units, left_out

    def _unit(self, spans: tuple[ByteRange, ...], strict: bool) -> WorkUnit[TextPart]:
        first, last = spans[0], spans[-1]
        location = first.path if first == last else f"{first.path} to {last.path}"
        return WorkUnit(self, TextPart(spans, strict), location, sum(span.size for span in spans))

    def documents(self, part: TextPart, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of ``part``. A large file that is one document comes in pieces, unless ``tokenizer``
        needs it whole. Raises UserError with file, line and byte for a named file that is not UTF-8."""
        make = text_maker(self.document)
        cuttable = tokenizer is None or tokenizer.can_cut
        in_pieces = self.separator is None and self.document == WholeText() and cuttable
        for span in part.spans:
            if in_pieces and span.size > PIECE and not is_compressed(span.path):
                yield from _pieces(span, part.strict, report)
                continue
            for text in self._texts(span, part.strict, report):
                document = make(text)
                if document is None:
                    report.dropped["without_separator"] += 1
                else:
                    yield document

    def _texts(self, span: ByteRange, strict: bool, report: Report) -> Iterator[str]:
        try:
            data = b"".join(blocks(span.path)) if is_compressed(span.path) else read(span)
            text = data.decode("utf-8")
        except (UnicodeDecodeError, BadFile) as error:
            if strict:
                raise (_not_utf8(span, error) if isinstance(error, UnicodeDecodeError) else error) from None
            report.left_out.append(span.path)
            return
        if not strict and "\0" in text:
            report.left_out.append(span.path)
            return
        if span.start == 0:
            text = text.removeprefix(_BOM)
        if self.separator is None:
            yield text
            return
        documents = text.split(self.separator)
        report.matched["separator"] += len(documents) - 1
        if not documents[-1]:
            documents.pop()
        yield from documents

    def unmatched(self, index: SourceIndex, matched: Mapping[str, int], documents: int) -> Iterator[str]:
        if self.separator is not None and not matched.get("separator"):
            yield f"`separator` {self.separator!r} stands nowhere in {len(index.files):,} files: each is one document"


class PythonStdlibReader(TextReader):
    """The modules of the running Python's library, sorted by name, without the configuration of the build, which
    describes this machine."""

    def missing(self, where: str) -> list[str]:
        return [] if library_folder().is_dir() else [_no_library(where)]

    def find(self, where: str, passed: PassedOver) -> list[File]:
        folder = library_folder()

        def skip(name: str) -> bool:
            return name in _NOT_LIBRARY or name.startswith((".", "_sysconfigdata"))

        files = (file for file in walk(folder, skip, "python_stdlib") if file.suffix == ".py")
        modules = [described(file, file.relative_to(folder).as_posix(), named=False) for file in files]
        if not modules:
            raise UserError(_no_library(where))
        return sorted(modules, key=lambda file: file.name)

    def facts(self, files: list[File]) -> list[str]:
        # No times: each installation of one version has its own times, but the same files.
        return [sys.version, *(f"{file.name}\n{file.size}" for file in files)]


def library_folder() -> Path:
    """Return the folder with the modules of the running Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def _no_library(where: str) -> str:
    return f"{where}: {library_folder()} does not exist: this Python has no library on disk; use a source of kind text"


def _pieces(span: ByteRange, strict: bool, report: Report) -> Iterator[TextPiece]:
    """Yield the text of a file in pieces of about ``PIECE`` characters, to save memory."""
    if not strict and not _is_text_file(span.path):
        report.left_out.append(span.path)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, offset, begun = "", 0, False
    with open_file(span.path) as file:
        while data := file.read(_READ):
            try:
                text += decoder.decode(data)
            except UnicodeDecodeError as error:
                begin = offset - len(error.object) + len(data)
                raise _not_utf8(ByteRange(span.path, begin, span.stop), error) from None
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


def _not_utf8(span: ByteRange, error: UnicodeDecodeError) -> UserError:
    offset = span.start + error.start
    line = error.object.count(b"\n", 0, error.start) + 1 if is_compressed(span.path) else line_of(span.path, offset)
    return UserError(
        f"{span.path}:{line}: byte {offset} (0x{error.object[error.start]:02x}) is not UTF-8; "
        "convert the file, for instance with iconv -t UTF-8, or name its folder, of which only text is read"
    )


def _is_text_file(path: str) -> bool:
    """Return True if the file is UTF-8 without a zero byte, by which git and grep recognise binary files."""
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
