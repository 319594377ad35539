"""The section `document` of a source: the part of a row, line or file that is a document, and the part of a document
that counts in the loss."""

import datetime
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.templates import TemplateError, names_in

_PREFIX = "text before each document; it counts in the loss"
_SEPARATOR = "only the text after its first occurrence counts in the loss; a document without it is dropped"
IGNORED = -100
"""The target of a token that does not count in the loss, in batches and in data that has labels."""
IGNORE_INDEX = "the label of tokens that do not count in the loss"
_UNLEARNT = "text before each document; it does not count in the loss"


Content = Literal["text", "ids", "notes"]
"""The contents that a document can have."""


class WholeText(ConfigSection):
    """All of the text."""

    kind: Literal["text"] = key("text", "the whole text, all of which counts in the loss")
    prefix: str = key("", _PREFIX)


class ConditionalText(ConfigSection):
    """A prompt, a separator and a text, of which only the text counts in the loss."""

    kind: Literal["conditional"] = key(..., "only the text after a separator counts in the loss")
    separator: str = key(..., _SEPARATOR, min_length=1)
    prefix: str = key("", _UNLEARNT)


class TextField(WholeText):
    """The text of a field."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class ConditionalField(ConditionalText):
    """A prompt, a separator and a text in one field; only the text counts in the loss."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class AnswerFields(ConfigSection):
    """A prompt and its answer in two fields; the answer and the end id after it count in the loss."""

    kind: Literal["answer"] = key(..., "only the answer to a prompt counts in the loss")
    prompt: str = key("prompt", "the field or column that holds the prompt", min_length=1)
    answer: str = key("answer", "the field or column that holds the answer", min_length=1)
    between: str = key("", "text between prompt and answer; it does not count in the loss")


class TemplateFields(ConfigSection):
    """A text that a Jinja template makes of several fields; all of it counts in the loss."""

    kind: Literal["template"] = key(..., "the text of several fields")
    text: str = key(
        ...,
        "the text, with `{{ name }}` for a field or column, `{{ name[0].key }}` for a value within it, and Jinja's "
        "`{% for … %}`, `{% if … is defined %}` and `| default('')`; whitespace is kept. Values must be texts; "
        "convert a number with `{{ name | string }}`",
        min_length=1,
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields or columns that the template names, sorted. Raises TemplateError for a template that is not
        valid."""
        return _names_in(self.text)

    def errors(self) -> ConfigErrors:
        """Yield an error for a template that is not valid, or that names no field."""
        try:
            if not self.fields:
                yield config_error("text", "names no field; write {{ name }} for the text of a field")
        except TemplateError as error:
            yield config_error("text", str(error))


class ChatField(ConfigSection):
    """A conversation: a list of messages, each with `role` and `content`, that a chat template makes a text of. Only
    the assistant's messages, and what the template puts after them, count in the loss."""

    kind: Literal["chat"] = key(..., "only the assistant's messages count in the loss")
    messages: str = key("messages", "the field or column that holds the list of messages", min_length=1)
    template: str | None = key(None, "a Jinja file; the tokenizer's own template when not given", min_length=1)
    date: str | None = key(
        None,
        "the day, as YYYY-MM-DD, that the template gets for today (strftime_now); required by templates that ask for "
        "it, because a run must not depend on the clock",
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a date that does not exist."""
        if self.date is not None:
            with suppress(ValueError):
                if datetime.date.fromisoformat(self.date).isoformat() == self.date:
                    return
            yield config_error("date", f"{self.date!r} is not a date; write one such as 2024-07-26")


class TokenField(ConfigSection):
    """Token ids, made with the tokenizer of the run. If there is an `attention_mask`, tokens where it is 0 are
    dropped."""

    holds: ClassVar[Content] = "ids"

    kind: Literal["tokens"] = key(..., "token ids")
    ids: str = key("input_ids", "the field or column that holds the ids", min_length=1)
    labels: str = key(
        "labels",
        "the field or column of labels, if it exists: the ids again, or `ignore_index` for tokens that do not "
        "count in the loss",
    )
    ignore_index: int = key(IGNORED, IGNORE_INDEX, unit="id")
    seq_lengths: str | None = key(
        "seq_lengths",
        "the field or column of the lengths of the documents that are packed in a row, if it exists, as TRL writes it; "
        "null takes each row as one document",
        min_length=1,
    )
    learn_end: bool = key(
        True,
        "if a row has no end id, the one that is added counts in the loss, provided that the row's last token does",
    )


class Music(ConfigSection):
    """The keys of all sources of piano music."""

    pauses: float | None = key(
        None,
        "a piece is cut at silences longer than this, and each part is a document; not cut when not given",
        unit="seconds",
        gt=0,
    )
    only_by: tuple[str, ...] = key(
        (), "surnames of composers, such as bach: only their pieces are read; those of all composers when empty"
    )


class NotesField(Music):
    """A piece of piano music: lists `pitch`, `velocity`, `start` and `end` of equal length in one field, and JSON text
    with `composer` and `dataset` in another, as in piano-gpt's data sets. For tokenizers of notes."""

    holds: ClassVar[Content] = "notes"

    kind: Literal["notes"] = key(..., "a table of notes")
    notes: str = key("notes", "the field or column that holds the lists", min_length=1)
    source: str = key("source", "the field or column of metadata of the piece, as JSON, if it exists")


TextConfig = Annotated[WholeText | ConditionalText, Field(discriminator="kind")]
RowConfig = Annotated[
    TextField | ConditionalField | AnswerFields | TemplateFields | ChatField | TokenField | NotesField,
    Field(discriminator="kind"),
]


_names_in = lru_cache(maxsize=16)(names_in)
