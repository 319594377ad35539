"""Documents: which part of a row, a line or a file is one, and which of its tokens have a loss."""

from __future__ import annotations

import datetime
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.templates import TemplateError, names_in

_PREFIX = "text put in front of every document; it has a loss as the text has"
_SEPARATOR = "the text after which the loss begins, at its first occurrence; a document without it is left out"
IGNORED = -100
"""The target that has no loss, in batches as in data that comes with labels of its own."""
IGNORE_INDEX = "the value in the labels that means no loss"
_UNLEARNT = "text put in front of every document; it has no loss"


Content = Literal["text", "ids", "notes"]
"""The kinds of content of a document."""


class WholeText(ConfigSection):
    """All of the text."""

    kind: Literal["text"] = key("text", "the whole text, all of it with a loss")
    prefix: str = key("", _PREFIX)


class ConditionalText(ConfigSection):
    """A prompt and a text, with a separator between them: the prompt, the separator included, has no loss."""

    kind: Literal["conditional"] = key(..., "a loss after a separator only")
    separator: str = key(..., _SEPARATOR, min_length=1)
    prefix: str = key("", _UNLEARNT)


class TextField(WholeText):
    """The text of a field."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class ConditionalField(ConditionalText):
    """The text of a field that has a prompt, a separator and a text: only the last has a loss."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class AnswerFields(ConfigSection):
    """A prompt and its answer in two fields: the answer and its end have a loss."""

    kind: Literal["answer"] = key(..., "a loss on the answer to a prompt only")
    prompt: str = key("prompt", "the field or column that holds the prompt", min_length=1)
    answer: str = key("answer", "the field or column that holds the answer", min_length=1)
    between: str = key("", "text between prompt and answer; it has no loss")


class TemplateFields(ConfigSection):
    """A text of several fields, written by a Jinja template: all of it has a loss."""

    kind: Literal["template"] = key(..., "the text of several fields")
    text: str = key(
        ...,
        "the text, with `{{ name }}` for that of a field or column, `{{ name[0].key }}` for one within it, and "
        "`{% for … %}`, `{% if … is defined %}` and `| default('')` of Jinja; whitespace stays as it is. Only texts "
        "are written: of a number, `{{ name | string }}`",
        min_length=1,
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields or columns that it names, in the order of their names. Raises TemplateError where it is none."""
        return _names_in(self.text)

    def errors(self) -> ConfigErrors:
        """Yield an error for a template that is none, and for one that would write all rows alike."""
        try:
            if not self.fields:
                yield config_error("text", "names no field; write it as {{ name }} where its text is to stand")
        except TemplateError as error:
            yield config_error("text", str(error))


class ChatField(ConfigSection):
    """A conversation: a list of messages, each with `role` and `content`, written by a chat template. What the
    assistant says, and what the template puts after it, has a loss."""

    kind: Literal["chat"] = key(..., "a loss on what the assistant says only")
    messages: str = key("messages", "the field or column that holds the list of messages", min_length=1)
    template: str | None = key(None, "a Jinja file; the tokenizer's own template when not given", min_length=1)
    date: str | None = key(
        None,
        "the day, as YYYY-MM-DD, that the template is told when it asks for today (strftime_now); one that asks needs "
        "it, since a run does not follow the clock",
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a date that is no day."""
        if self.date is not None:
            with suppress(ValueError):
                if datetime.date.fromisoformat(self.date).isoformat() == self.date:
                    return
            yield config_error("date", f"{self.date!r} is no day; write one as 2024-07-26")


class TokenField(ConfigSection):
    """Tokens that are ready, made with the tokenizer of the run. Where there is an `attention_mask`, tokens of 0 are
    left out."""

    holds: ClassVar[Content] = "ids"

    kind: Literal["tokens"] = key(..., "ids that are ready")
    ids: str = key("input_ids", "the field or column that holds the ids", min_length=1)
    labels: str = key(
        "labels", "where there is such a field or column: the ids again, or `ignore_index` where there is no loss"
    )
    ignore_index: int = key(IGNORED, IGNORE_INDEX, unit="id")
    seq_lengths: str | None = key(
        "seq_lengths",
        "where there is such a field or column: the lengths of the documents that a row packs, as TRL writes them; "
        "null takes each row as one document",
        min_length=1,
    )
    learn_end: bool = key(
        True, "the end id that is put after a row without one has a loss, where the row's last token has"
    )


class Music(ConfigSection):
    """The keys of pieces of piano music, wherever they come from."""

    pauses: float | None = key(
        None,
        "a piece is cut where nothing sounds for longer than this, each part a document; whole when not given",
        unit="seconds",
        gt=0,
    )
    only_by: tuple[str, ...] = key(
        (), "only pieces of these composers, by surname, such as bach; of all when empty, unknown ones too"
    )


class NotesField(Music):
    """A piece of piano music: lists of equal length `pitch`, `velocity`, `start` and `end` in one field, and JSON text
    with `composer` and `dataset` in another, as in the data sets of piano-gpt. For the tokenizers of notes."""

    holds: ClassVar[Content] = "notes"

    kind: Literal["notes"] = key(..., "a table of notes")
    notes: str = key("notes", "the field or column that holds the lists", min_length=1)
    source: str = key("source", "where there is such a field or column: what is known of the piece, as JSON")


TextConfig = Annotated[WholeText | ConditionalText, Field(discriminator="kind")]
RowConfig = Annotated[
    TextField | ConditionalField | AnswerFields | TemplateFields | ChatField | TokenField | NotesField,
    Field(discriminator="kind"),
]


_names_in = lru_cache(maxsize=16)(names_in)
