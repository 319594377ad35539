"""Held-out text by topic, from files or from the validation data of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quintet.config.evaluate import TextModelingConfig
from quintet.config.names import local_path
from quintet.config.sources import TextSource
from quintet.data.batch import ValidationData, held_out_documents
from quintet.data.sources.base import BadRow, Report, SourceIndex, TextPiece
from quintet.data.sources.files import OTHERS, File, PassedOver, ends_with, find_files, passed_over_lines
from quintet.data.sources.lines import lines_of, row_of
from quintet.data.sources.reading import ByteRange
from quintet.data.sources.rows import Location
from quintet.data.sources.text import TextReader
from quintet.errors import UserError, named
from quintet.evaluate.text_modeling import TextDocument, text_document
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import check_text

_TEXT = (".txt", ".txt.gz", ".txt.zst")
_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")
_UNIT = 1 << 20
Topics = Mapping[str, Sequence[TextDocument]]


@dataclass(frozen=True)
class TextFiles:
    """The texts of each topic, and the files of the folder that were passed over, by the reason."""

    topics: Mapping[str, list[str]]
    passed: PassedOver


def text_topics(
    config: TextModelingConfig,
    tokenizer: Tokenizer,
    validation: ValidationData | None,
    where: str,
    say: Callable[[str], None],
) -> Topics:
    """Return the documents of each topic in the files of ``config``, or in ``validation`` if it names none.

    ``where`` is the key or option for error messages; ``say`` gets a line for each kind of file that is passed over.
    Raises UserError if there is no document.
    """
    if config.path is not None:
        files = read_topics(config, where)
        for line in passed_over_lines(where, files.passed):
            say(line)
        return {name: [text_document(tokenizer, text) for text in texts] for name, texts in files.topics.items()}
    topics: Topics = {} if validation is None else held_out_topics(validation, tokenizer, config.max_bytes)
    if not topics:
        raise UserError(f"{where}: the run holds no text out; name a file or folder of text")
    return topics


def read_topics(config: TextModelingConfig, where: str) -> TextFiles:
    """Read the texts below ``config.path`` as the sources of kind text and jsonl do.

    Each file is a topic, named by its path in the folder without its ending; with ``topic_field`` each value of that
    field is one. The first ``max_bytes`` bytes of a topic are used, cut between two characters. Raises UserError, with
    file and line, for what is not text.
    """
    assert config.path is not None
    root = local_path(config.path)
    if not root.exists():
        raise UserError(f"{where}: {root} does not exist; name a file or folder of .txt and .jsonl")
    passed: PassedOver = {}
    all_files = find_files(str(root), ("",), where, passed)
    files = [file for file in all_files if ends_with(file.name, _TEXT + _ROWS)]
    if not files:
        raise UserError(f"{where}: {root} holds neither .txt nor .jsonl; name what does")
    if len(files) < len(all_files):
        passed[OTHERS] = [file.path for file in all_files if file not in files]
    topics: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for file, name in zip(files, _topic_names(files), strict=True):
        for topic, text in _documents(file, config, name):
            left = room.setdefault(topic, config.max_bytes)
            part = text.encode("utf-8")[:left].decode("utf-8", errors="ignore")
            if part:
                topics.setdefault(topic, []).append(part)
                room[topic] = left - len(part.encode("utf-8"))
    if not topics:
        raise UserError(f"{where}: {root} holds no text, only empty files; name another")
    return TextFiles(topics, passed)


def held_out_topics(validation: ValidationData, tokenizer: Tokenizer, max_bytes: int) -> Topics:
    """Return the documents that a run holds out, by the label of their source. The first ``max_bytes`` bytes of a label
    are used; the document that exceeds them is cut after the token that does."""
    lengths = tokenizer.bytes_per_token()
    topics: dict[str, list[TextDocument]] = {}
    room: dict[str, int] = {}
    for label, document in held_out_documents(validation, tokenizer):
        left = room.setdefault(label, max_bytes)
        if left <= 0:
            continue
        sizes = lengths[document.ids]
        if document.loss_mask is not None:
            sizes = sizes * document.loss_mask
        count = int(sizes.cumsum().searchsorted(left)) + 1
        loss_mask = None if document.loss_mask is None else document.loss_mask[:count]
        used = int(sizes[:count].sum())
        if used:
            topics.setdefault(label, []).append(TextDocument(document.ids[:count], used, loss_mask))
        room[label] = left - used
    return topics


def _topic_names(files: Sequence[File]) -> list[str]:
    """Return the name of each file without its ending, or with it if two files would have the same name."""
    endings = sorted(_TEXT + _ROWS, key=len, reverse=True)
    short = [file.name[: -len(next(end for end in endings if ends_with(file.name, (end,))))] for file in files]
    return [name if short.count(name) == 1 else file.name for name, file in zip(short, files, strict=True)]


def _documents(file: File, config: TextModelingConfig, topic: str) -> Iterator[tuple[str, str]]:
    """Yield topic and text of each document of ``file``, whose own topic is ``topic``."""
    if ends_with(file.name, _ROWS):
        for line, location in lines_of(ByteRange(file.path, 0, file.size)):
            yield _document(line, location, config, topic)
        return
    reader = TextReader(TextSource(kind="text", path=file.path, separator=config.separator))
    units, _ = reader.units(SourceIndex(reader, "", file.size, (replace(file, named=True),)), _UNIT)
    pieces: list[str] = []
    for document in (document for unit in units for document in unit.documents(Report())):
        assert isinstance(document, str | TextPiece)
        pieces.append(document.text if isinstance(document, TextPiece) else document)
        if isinstance(document, str) or not document.continues:
            yield topic, "".join(pieces)
            pieces.clear()


def _document(line: bytes, location: Location, config: TextModelingConfig, topic: str) -> tuple[str, str]:
    try:
        values = row_of(line)
    except BadRow as bad:
        raise UserError(f"{location()}: {bad}") from None
    text = values.get(config.text_field)
    if not isinstance(text, str):
        there = ", ".join(values) or "none"
        raise UserError(
            f"{location()}: has no text in {config.text_field!r}; its fields are {there} (text_field names it)"
        )
    with named(location()):
        check_text(text)
    if config.topic_field is None:
        return topic, text
    if not isinstance(values.get(config.topic_field), str | int):
        raise UserError(
            f"{location()}: names no topic in {config.topic_field!r}; name another topic_field, or leave it out"
        )
    return str(values[config.topic_field]), text
