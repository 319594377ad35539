"""Held-out text by topic: from files, read as the sources of a run are, or what a run holds out."""

from __future__ import annotations

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
    """The texts of each topic, and what of the folder was passed over, by the reason."""

    topics: Mapping[str, list[str]]
    passed: PassedOver


def text_topics(
    config: TextModelingConfig,
    tokenizer: Tokenizer,
    validation: ValidationData | None,
    where: str,
    say: Callable[[str], None],
) -> Topics:
    """The documents of each topic of ``config``: of its files, or of what is held out. ``where`` names the key or
    option that asks, and ``say`` is told what a folder holds beside its texts. Raises UserError where there are none.
    """
    if config.path is not None:
        found = read_topics(config, where)
        for line in passed_over_lines(where, found.passed):
            say(line)
        return {name: [text_document(tokenizer, text) for text in texts] for name, texts in found.topics.items()}
    topics = {} if validation is None else own_topics(validation, tokenizer, config.max_bytes)
    if not topics:
        raise UserError(f"{where}: the run holds no text out; name a file or folder of text")
    return topics


def read_topics(config: TextModelingConfig, where: str) -> TextFiles:
    """The texts below ``config.path``: each file is a topic, named by its path in the folder without its ending, or
    with ``topic_field`` the lines that name it. A text is what a source of kind text or jsonl makes of the file. Of
    each topic the first ``max_bytes`` bytes are taken, cut between two characters. Raises UserError, with file and
    line, for what is no text."""
    assert config.path is not None
    root = local_path(config.path)
    if not root.exists():
        raise UserError(f"{where}: {root} does not exist; name a file or folder of .txt and .jsonl")
    passed: PassedOver = {}
    every = find_files(str(root), ("",), where, passed)
    files = [file for file in every if ends_with(file.name, _TEXT + _ROWS)]
    if not files:
        raise UserError(f"{where}: {root} holds neither .txt nor .jsonl; name what does")
    if len(files) < len(every):
        passed[OTHERS] = [file.path for file in every if file not in files]
    topics: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for file, own in zip(files, _topic_names(files), strict=True):
        for topic, text in _documents(file, config, own):
            left = room.setdefault(topic, config.max_bytes)
            part = text.encode("utf-8")[:left].decode("utf-8", errors="ignore")
            if part:
                topics.setdefault(topic, []).append(part)
                room[topic] = left - len(part.encode("utf-8"))
    if not topics:
        raise UserError(f"{where}: {root} holds no text, only empty files; name another")
    return TextFiles(topics, passed)


def own_topics(validation: ValidationData, tokenizer: Tokenizer, max_bytes: int) -> Topics:
    """The documents that a run holds out, as their tokens, by the label of their source. Of each label the first are
    taken, with the one that passes ``max_bytes`` cut after the token that does."""
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
        taken = int(sizes[:count].sum())
        if taken:
            topics.setdefault(label, []).append(TextDocument(document.ids[:count], taken, loss_mask))
        room[label] = left - taken
    return topics


def _topic_names(files: Sequence[File]) -> list[str]:
    """The name of each file without its ending, which it keeps where two would have one name."""
    endings = sorted(_TEXT + _ROWS, key=len, reverse=True)
    short = [file.name[: -len(next(one for one in endings if ends_with(file.name, (one,))))] for file in files]
    return [name if short.count(name) == 1 else file.name for name, file in zip(short, files, strict=True)]


def _documents(file: File, config: TextModelingConfig, topic: str) -> Iterator[tuple[str, str]]:
    """Topic and text of each document of ``file``, whose own topic is ``topic``."""
    if ends_with(file.name, _ROWS):
        for line, location in lines_of(ByteRange(file.path, 0, file.size)):
            yield _document(line, location, config, topic)
        return
    reader = TextReader(TextSource(kind="text", path=file.path, separator=config.separator))
    units, _ = reader.units(SourceIndex(reader, "", file.size, (replace(file, named=True),)), _UNIT)
    whole: list[str] = []
    for document in (document for unit in units for document in unit.documents(Report())):
        assert isinstance(document, str | TextPiece)
        whole.append(document.text if isinstance(document, TextPiece) else document)
        if isinstance(document, str) or not document.continues:
            yield topic, "".join(whole)
            whole.clear()


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
