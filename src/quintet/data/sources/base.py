"""The base of readers of sources, the documents that they yield, and the index and the work units of a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from quintet.config.documents import ChatField, TemplateFields
from quintet.config.names import local_path
from quintet.config.sources import Source, SourceConfig
from quintet.data.sources.files import EMPTY, File, PassedOver, check_path, find_files
from quintet.errors import UserError
from quintet.libraries import is_installed, not_installed
from quintet.tokenize.base import Tokenizer, digest, versions_of

UNIT_BYTES = 16 << 20
_LARGEST_UNIT = 128 << 20
_UNITS = 2048


AnySource = TypeVar("AnySource", bound=SourceConfig)
Part = TypeVar("Part")


@dataclass(frozen=True)
class TextParts:
    """A document of several texts, encoded as one text; ``loss_mask`` is True for texts that count in the
    loss.

    A token of characters from two texts counts if one of the texts does. The end id after the last text counts if that
    text does. With ``template`` the text of a special token is its id, as a chat template writes it. ``ends``
    are ids that end the document as the end id does, with or without white space after them.
    """

    texts: tuple[str, ...]
    loss_mask: tuple[bool, ...]
    template: bool = False
    ends: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.loss_mask)

    @property
    def whole(self) -> str:
        """All of the text."""
        return "".join(self.texts)


@dataclass(frozen=True)
class TextPiece:
    """A part of a long text, cut where that changes no id; all parts but the last have ``continues``.

    ``whole`` is the complete text, if it is in memory anyway.
    """

    text: str
    continues: bool
    whole: str | None = None


@dataclass(frozen=True)
class TokenIds:
    """A document of token ids: ``ids`` [tokens] of any integer type, ``loss_mask``, bool [tokens], is True for
    ids that count in the loss; None if all do.

    A long document may come in several pieces, to save memory: all but the last have ``continues``. ``location`` is
    where the ids were read, for messages. ``ends`` are ids that end the document as the end id does, with or without
    white space after them. An end id that is added counts in the loss if the last id does and ``learn_end`` is set.
    """

    ids: np.ndarray
    location: str
    loss_mask: np.ndarray | None = None
    continues: bool = False
    ends: frozenset[int] = frozenset()
    learn_end: bool = True


Document = str | TextPiece | TextParts | TokenIds
"""In the store each document ends with the end id, which is added unless the document has another end."""


@dataclass
class Report:
    """Counts of what was not read: ``left_out`` names unreadable files, and ``dropped`` counts dropped documents, and
    skipped parts of documents, by reason. ``matched`` counts what settings found: separators, end ids, rows with
    labels."""

    left_out: list[str] = field(default_factory=list[str])
    dropped: Counter[str] = field(default_factory=Counter[str])
    matched: Counter[str] = field(default_factory=Counter[str])


class Unwanted(Exception):
    """Raised for a document that the run file excludes; the message is the reason to count it by."""


class BadRow(Exception):
    """Raised for a row that cannot be used: a ``reason`` to count it by, and a message without its location."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Reader(ABC, Generic[AnySource, Part]):
    """The base of the reader of a kind of source, which sets class attributes and overrides methods as it needs."""

    suffixes: tuple[str, ...] = ("",)
    """Endings of the files that are read when the source names a folder."""
    needs: tuple[str, str] | None = None
    """A module without which nothing can be read, and the extra that has it."""
    read_by: tuple[str, ...] = ()
    """Libraries that decide what the documents are, by their names on PyPI. A library that only decompresses files,
    whose content has a checksum, such as zstandard, does not."""

    written_by = ("jinja2",)
    """Libraries that write the documents of a template, by their names on PyPI."""

    def __init__(self, source: AnySource) -> None:
        self.source = source

    def missing(self, where: str) -> list[str]:
        """Return a line for each thing that is missing to read the source, whose key in the run file is ``where``. No
        data is read."""
        problems = [check_path(path, self.suffixes, f"{where}.path") for path in self.source.paths]
        return [*self.missing_library(where), *(problem for problem in problems if problem is not None)]

    def missing_library(self, where: str) -> list[str]:
        """Return a line if the library that the kind needs is not installed."""
        if self.needs is None or is_installed(self.needs[0]):
            return []
        return [not_installed(f"{where}: a source of kind {self.source.kind}", self.needs[1], self.needs[0])]

    @property
    def libraries(self) -> tuple[str, ...]:
        """``read_by``, and ``written_by`` if a template writes the documents."""
        by_template = isinstance(getattr(self.source, "document", None), ChatField | TemplateFields)
        return (*self.read_by, *self.written_by) if by_template else self.read_by

    def index(self, where: str) -> SourceIndex:
        """Return the index of the source as it is now; no data is read. Raises UserError when something is missing."""
        passed: PassedOver = {}
        files = self.find(where, passed)
        if empty := [file.path for file in files if not file.size]:
            passed[EMPTY] = empty
        return self.indexed(where, self.facts(files), sum(file.size for file in files), files, passed)

    def find(self, where: str, passed: PassedOver) -> list[File]:
        """Return the files of the source, and add the names that are not read to ``passed``.

        Raises UserError when there is no file.
        """
        return find_files(self.source.paths, self.suffixes, f"{where}.path", passed)

    def facts(self, files: list[File]) -> list[str]:
        """Return the facts about ``files`` that the fingerprint of the source depends on."""
        return [file.facts for file in files]

    def indexed(
        self, where: str, facts: Iterable[str], size: int, files: Iterable[File] = (), passed: PassedOver | None = None
    ) -> SourceIndex:
        """Return the index of the source, of ``size`` bytes; its fingerprint changes if the ``facts`` do."""
        versions = "".join(f"\n{name} {version}" for name, version in versions_of(self.libraries).items())
        how = self.source.model_dump_json(exclude={"path", *Source.model_fields}) + self._template(where) + versions
        return SourceIndex(self, digest(how, *facts), size, tuple(files), passed or {})

    def _template(self, where: str) -> str:
        """Return the text of the chat template that the source names, "" if it names none."""
        document = getattr(self.source, "document", None)
        if not isinstance(document, ChatField) or document.template is None:
            return ""
        try:
            return local_path(document.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}.document.template: {document.template} cannot be read ({error})") from None

    @abstractmethod
    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[Part]], list[str]]:
        """Return work units of about ``length`` bytes in the order of the documents, and the paths of unreadable
        files."""

    @abstractmethod
    def documents(self, part: Part, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of ``part`` of the source in their order, empty ones included.

        Without a ``tokenizer``, yield what one can be trained on: texts and music. What is skipped is added to
        ``report``. Raises UserError with the location of what cannot be read.
        """

    def unmatched(self, index: SourceIndex, matched: Mapping[str, int], documents: int) -> Iterator[str]:
        """Yield a line for each setting that found nothing in the source, of which ``documents`` were kept."""
        return iter(())


@dataclass(frozen=True)
class WorkUnit(Generic[Part]):
    """A part of a source that is read by itself and becomes one shard, of ``size`` bytes; messages name it by
    ``location``."""

    reader: Reader[Any, Part]
    part: Part
    location: str
    size: int

    def documents(self, report: Report, tokenizer: Tokenizer | None = None) -> Iterator[Document]:
        """Yield the documents of this unit; see `Reader.documents`. Without a ``tokenizer`` there are none of ids."""
        if tokenizer is None and self.reader.source.content == "ids":
            return iter(())
        return self.reader.documents(self.part, report, tokenizer)


@dataclass(frozen=True)
class SourceIndex:
    """A source as it is now, of ``size`` bytes.

    ``fingerprint`` depends on its files with their sizes and times, or its dataset, on how it is read, and on the
    versions of the libraries that read it. ``passed`` has the names in its folders that are not read, by reason.
    """

    reader: Reader[Any, Any]
    fingerprint: str
    size: int
    files: tuple[File, ...] = ()
    passed: PassedOver = field(default_factory=dict[str, list[str]])

    @property
    def source(self) -> Any:
        """The config of the source."""
        return self.reader.source

    def units(self) -> tuple[list[WorkUnit[Any]], list[str]]:
        """Return the work units, in the order of the documents, and the paths of unreadable files.

        Units depend on the index only, not on the number of processes. Their size grows with the corpus from 16 to 128
        MB, so that a large corpus has thousands of shards and not a hundred thousand.
        """
        return self.reader.units(self, min(max(UNIT_BYTES, self.size // _UNITS), _LARGEST_UNIT))
