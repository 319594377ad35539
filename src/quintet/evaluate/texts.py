"""Held-out text by topic: from files, or what a run holds out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quintet.config.text_modeling import TextModelingConfig
from quintet.data.batch import ValidationData
from quintet.data.held_out import held_out_documents
from quintet.errors import UserError
from quintet.evaluate.text_modeling import TextDocument, text_document
from quintet.tokenize import Tokenizer

_ENDINGS = (".txt", ".jsonl")
Topics = Mapping[str, Sequence[TextDocument]]


@dataclass(frozen=True)
class TextFiles:
    """The texts of each topic, and how many files of the folder were passed over, since they end otherwise."""

    topics: Mapping[str, list[str]]
    others: int


def text_topics(
    config: TextModelingConfig, tokenizer: Tokenizer, validation: ValidationData | None, where: str
) -> Topics:
    """The documents of each topic of ``config``: of its files, or of what is held out. ``where`` names the key or
    option that asks. Raises UserError where there are none."""
    if config.path is not None:
        found = read_topics(config, where)
        return {name: [text_document(tokenizer, text) for text in texts] for name, texts in found.topics.items()}
    topics = {} if validation is None else own_topics(validation, tokenizer, config.max_bytes)
    if not topics:
        raise UserError(f"{where}: the run holds no text out; name a file or folder of text")
    return topics


def read_topics(config: TextModelingConfig, where: str) -> TextFiles:
    """The texts below ``config.path``: each file is a topic, named by its place in the folder without its ending, or
    with ``topic_field`` the lines that name it. Of each topic the first ``max_bytes`` bytes are taken, cut between two
    characters. Raises UserError, with file and line, for what is no text."""
    assert config.path is not None
    root = Path(config.path).expanduser()
    if not root.exists():
        raise UserError(f"{where}: {root} does not exist; name a file or folder of .txt and .jsonl")
    every = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    files = [file for file in every if file.suffix in _ENDINGS]
    if not files:
        raise UserError(f"{where}: {root} holds neither .txt nor .jsonl; name what does")
    topics: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for file in files:
        own = file.stem if file == root else file.relative_to(root).with_suffix("").as_posix()
        for topic, text in _documents(file, config, own):
            left = room.setdefault(topic, config.max_bytes)
            part = text.encode("utf-8")[:left].decode("utf-8", errors="ignore")
            if part:
                topics.setdefault(topic, []).append(part)
                room[topic] = left - len(part.encode("utf-8"))
    if not topics:
        raise UserError(f"{where}: {root} holds no text, only empty files; name another")
    return TextFiles(topics, len(every) - len(files))


def own_topics(validation: ValidationData, tokenizer: Tokenizer, max_bytes: int) -> Topics:
    """The documents that a run holds out, as their tokens, by the label of their source. Of each label the first are
    taken, with the one that passes ``max_bytes`` cut behind the token that does."""
    lengths = tokenizer.bytes_per_token()
    topics: dict[str, list[TextDocument]] = {}
    room: dict[str, int] = {}
    for label, document in held_out_documents(validation, tokenizer.end_id):
        left = room.setdefault(label, max_bytes)
        if left <= 0:
            continue
        sizes = lengths[document.ids]
        if document.learnt is not None:
            sizes = sizes * document.learnt
        count = int(sizes.cumsum().searchsorted(left)) + 1
        learnt = None if document.learnt is None else document.learnt[:count]
        taken = int(sizes[:count].sum())
        if taken:
            topics.setdefault(label, []).append(TextDocument(document.ids[:count], taken, learnt))
        room[label] = left - taken
    return topics


def _documents(file: Path, config: TextModelingConfig, topic: str) -> Iterator[tuple[str, str]]:
    """Topic and text of each document of ``file``."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8; convert the file, as with iconv -t UTF-8") from None
    if file.suffix == ".txt":
        parts = [text] if config.separator is None else text.split(config.separator)
        yield from ((topic, part) for part in parts if part)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _document(line, f"{file}:{number}", config, topic)


def _document(line: str, place: str, config: TextModelingConfig, topic: str) -> tuple[str, str]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: is no JSON ({error.msg}); correct or remove the line") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: is no JSON object; each line must be one, with the field {config.text_field!r}")
    text = values.get(config.text_field)
    if not isinstance(text, str):
        there = ", ".join(values) or "none"
        raise UserError(f"{place}: has no text in {config.text_field!r}; its fields are {there} (text_field names it)")
    if config.topic_field is None:
        return topic, text
    if not isinstance(values.get(config.topic_field), str | int):
        raise UserError(f"{place}: names no topic in {config.topic_field!r}; name another topic_field, or leave it out")
    return str(values[config.topic_field]), text
