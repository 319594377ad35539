"""Sources: a `Reader` for each finds what there is, cuts it into work units and reads their documents."""

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

TEMPLATE_LIBRARIES = ("jinja2",)
"""Libraries that write the documents of a template, by their names on PyPI."""

AnySource = TypeVar("AnySource", bound=SourceConfig)
Part = TypeVar("Part")


@dataclass(frozen=True)
class TextParts:
    """A document of several texts, encoded as one; ``loss_mask`` says for each text whether its tokens have a loss.

    A token that stands for characters of two texts has a loss if one of them has. The end id after the last text is
    learnt if that text is. With ``template`` the text of a special token is its id, as a chat template writes it.
    ``ends`` are ids that end the document as well as the end id, with white space after them or not.
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
    """A part of a long text, cut where no id changes by it; all parts but the last have ``continues``.

    ``whole`` is the text that it is a part of, where that is in memory anyway.
    """

    text: str
    continues: bool
    whole: str | None = None


@dataclass(frozen=True)
class TokenIds:
    """Tokens that are ready: ``ids`` [tokens] of any integer type.

    ``loss_mask`` bool [tokens] says which have a loss, all of them when None. A document may come in several pieces, so
    that a long one needs little memory: all but its last have ``continues``. ``location`` says where the ids stand, for
    messages. ``ends`` are ids that end the document as well as the end id, with white space after them or not; an end
    id that is added has a loss where the last token has one, and with ``learn_end``.
    """

    ids: np.ndarray
    location: str
    loss_mask: np.ndarray | None = None
    continues: bool = False
    ends: frozenset[int] = frozenset()
    learn_end: bool = True


Document = str | TextPiece | TextParts | TokenIds
"""In the store the end id stands after each; it is added where a document does not end by itself."""


@dataclass
class Report:
    """Counts of what was not read: ``left_out`` names files that cannot be read, ``dropped`` counts documents by the
    reason, and parts of documents that were passed over. ``matched`` counts what settings found: separators, end ids,
    rows with labels."""

    left_out: list[str] = field(default_factory=list[str])
    dropped: Counter[str] = field(default_factory=Counter[str])
    matched: Counter[str] = field(default_factory=Counter[str])


class Unwanted(Exception):
    """Raised for a document that the run file leaves out; the message is the reason to count by."""


class BadRow(Exception):
    """Raised for a row that cannot be used: a ``reason`` to count by, and a message without its place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Reader(ABC, Generic[AnySource, Part]):
    """Reads sources of one kind. A kind sets what it needs of the attributes, and overrides what it does otherwise."""

    suffixes: tuple[str, ...] = ("",)
    """Endings of the files that are read when the source names a folder."""
    needs: tuple[str, str] | None = None
    """A module without which nothing can be read, and the extra that has it."""
    read_by: tuple[str, ...] = ()
    """Libraries that decide what the documents are, by their names on PyPI. What unpacks files whose content has a
    checksum (zstandard) is none of them."""

    def __init__(self, source: AnySource) -> None:
        self.source = source

    def missing(self, where: str) -> list[str]:
        """A line for each thing that is missing to read the source; no data is read. ``where`` is its key in the run
        file."""
        problems = [check_path(path, self.suffixes, f"{where}.path") for path in self.source.paths]
        return [*self.missing_library(where), *(problem for problem in problems if problem is not None)]

    def missing_library(self, where: str) -> list[str]:
        """A line if the library that the kind needs is not there."""
        if self.needs is None or is_installed(self.needs[0]):
            return []
        return [not_installed(f"{where}: a source of kind {self.source.kind}", self.needs[1], self.needs[0])]

    @property
    def libraries(self) -> tuple[str, ...]:
        """``read_by``, and for documents that a template writes `TEMPLATE_LIBRARIES`."""
        written = isinstance(getattr(self.source, "document", None), ChatField | TemplateFields)
        return (*self.read_by, *TEMPLATE_LIBRARIES) if written else self.read_by

    def index(self, where: str) -> SourceIndex:
        """The source as it is now, without reading it. Raises UserError when something is missing."""
        passed: PassedOver = {}
        files = self.find(where, passed)
        if empty := [file.path for file in files if not file.size]:
            passed[EMPTY] = empty
        return self.indexed(where, self.facts(files), sum(file.size for file in files), files, passed)

    def find(self, where: str, passed: PassedOver) -> list[File]:
        """Return the files of the source; the names that are not read are added to ``passed``.

        Raises UserError when there is none.
        """
        return find_files(self.source.paths, self.suffixes, f"{where}.path", passed)

    def facts(self, files: list[File]) -> list[str]:
        """The facts that the fingerprint of a source with these ``files`` follows from."""
        return [file.facts for file in files]

    def indexed(
        self, where: str, facts: Iterable[str], size: int, files: Iterable[File] = (), passed: PassedOver | None = None
    ) -> SourceIndex:
        """The index of a source of ``size`` bytes that is the same as long as the ``facts`` are."""
        versions = "".join(f"\n{name} {version}" for name, version in versions_of(self.libraries).items())
        how = self.source.model_dump_json(exclude={"path", *Source.model_fields}) + self._template(where) + versions
        return SourceIndex(self, digest(how, *facts), size, tuple(files), passed or {})

    def _template(self, where: str) -> str:
        """The text of the chat template that the source names, "" when it names none."""
        document = getattr(self.source, "document", None)
        if not isinstance(document, ChatField) or document.template is None:
            return ""
        try:
            return local_path(document.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}.document.template: {document.template} cannot be read ({error})") from None

    @abstractmethod
    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[Part]], list[str]]:
        """Work units of about ``length`` bytes in the order of the documents, and files left out as unreadable."""

    @abstractmethod
    def documents(self, part: Part, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """The documents of ``part`` of the source in their order, empty ones included.

        Without a ``tokenizer`` these are what one can be made from: texts and music. What is left out is added to
        ``report``. Raises UserError with the place of what cannot be read.
        """

    def unmatched(self, index: SourceIndex, matched: Mapping[str, int], documents: int) -> Iterator[str]:
        """A line for each setting that found nothing in the source, of which ``documents`` were kept."""
        return iter(())


@dataclass(frozen=True)
class WorkUnit(Generic[Part]):
    """A part of a source that is read by itself and becomes one shard: messages name it by ``location``, ``size`` is in
    bytes."""

    reader: Reader[Any, Part]
    part: Part
    location: str
    size: int

    def documents(self, report: Report, tokenizer: Tokenizer | None = None) -> Iterator[Document]:
        """The documents of this unit; see `Reader.documents`. Without a ``tokenizer`` ready ids are passed over."""
        if tokenizer is None and self.reader.source.content == "ids":
            return iter(())
        return self.reader.documents(self.part, report, tokenizer)


@dataclass(frozen=True)
class SourceIndex:
    """A source as it is now. ``fingerprint`` follows from its files with sizes and times, or its dataset, from how it
    is read and from the versions of the libraries that read it; ``size`` is in bytes, and ``passed`` has the names in
    its folders that are not read."""

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
        """The work units, in the order of the documents, and files that are left out because they are unreadable.

        They follow from the index alone, and not from the number of processes. Units grow with the corpus from 16 to
        128 MB, so that a large one has thousands of shards and not a hundred thousand.
        """
        return self.reader.units(self, min(max(UNIT_BYTES, self.size // _UNITS), _LARGEST_UNIT))
