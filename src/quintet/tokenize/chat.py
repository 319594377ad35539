"""Conversations as text and ids, by the chat template of a tokenizer.

A template is a Jinja program that writes a list of messages as one text, in the dialect of Hugging Face's
`apply_chat_template`: the same whitespace, functions and variables, in the same sandbox.
"""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict

from quintet.errors import UserError
from quintet.templates import TemplateError, render_chat
from quintet.tokenize.base import END_OF_TEXT, Tokenizer, read_bytes
from quintet.tokenize.bounds import TextBounds, encode_with_special, special_tokens
from quintet.tokenize.huggingface import HuggingFaceTokenizer

_ANSWER, _QUESTION = "the-answer-itself", "the-next-question"  # texts that no template writes by itself


class Message(TypedDict):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatFormat:
    """Conversations as text by ``template``, and as ids by ``tokenizer``. The template reads the time from ``clock``;
    nothing else that it can ask for changes from one call to the next."""

    tokenizer: Tokenizer
    template: str
    clock: Callable[[], datetime.datetime] = datetime.datetime.now

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """Return the text of ``messages``, with ``answer_next`` up to the beginning of an answer.

        Raises UserError when the template is wrong, or refuses these messages.
        """
        values = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": answer_next,
            **_named(self.tokenizer),
        }
        try:
            return render_chat(self.template, values, self.clock)
        except TemplateError as error:
            raise UserError(f"chat template: {error}; give another with --template FILE") from None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of ``messages`` up to the beginning of an answer; special tokens become their ids."""
        return encode_with_special(self.tokenizer, self.render(messages))

    def bounds(self, text: TextBounds) -> TextBounds:
        """Return the bounds of an answer by a model whose texts have the bounds ``text``. What the template writes
        after an answer, up to the first special token, ends an answer as well."""
        after, *tokens = self.after_answer  # at most one token
        stop_ids = {special_tokens(self.tokenizer)[token] for token in tokens}
        stops = ("".join([after, *tokens]),) if after else ()
        return replace(text, stop_ids=text.stop_ids | stop_ids, stops=text.stops + stops)

    @cached_property
    def answer_prefix(self) -> str:
        """The text, such as a space, that a model writes before an answer because the template or the tokenizer puts it
        there."""
        asked = _asked()[:1]
        prompt, whole = self.render(asked), self.render([*asked, _answered()], answer_next=False)
        ids, all_ids = encode_with_special(self.tokenizer, prompt), encode_with_special(self.tokenizer, whole)
        if all_ids[: len(ids)] == ids:
            pieces = self.tokenizer.pieces
            text = b"".join(map(pieces.of, all_ids[len(ids) :])).decode("utf-8", errors="replace")
        else:
            # If the prompt is not how the conversation with the answer begins, the answer's beginning is unknown.
            text = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
        before, answer, _ = text.partition(_ANSWER)
        return before if answer else ""

    @cached_property
    def after_answer(self) -> list[str]:
        """The text that the template writes between an answer and the next question, up to the first special token,
        and that token if there is one."""
        match = re.search(f"{_ANSWER}(.*?){_QUESTION}", self.render(_turns(), answer_next=False), re.DOTALL)
        text = match[1] if match else ""
        if longest_first := sorted(special_tokens(self.tokenizer), key=len, reverse=True):
            pattern = "|".join(map(re.escape, longest_first))
            return re.split(f"({pattern})", text, maxsplit=1)[:2]
        return [text]


def _asked() -> list[Message]:
    return [{"role": "user", "content": "a question"}, {"role": "user", "content": _QUESTION}]


def _answered() -> Message:
    return {"role": "assistant", "content": _ANSWER}


def _turns() -> list[Message]:
    first, second = _asked()
    return [first, _answered(), second]


def chat_format(
    tokenizer: Tokenizer, template: Path | None = None, date: datetime.datetime | None = None
) -> ChatFormat:
    """Return the format of ``tokenizer``, with the Jinja file ``template`` in place of its own template, on the day
    ``date`` or today.

    Raises UserError when there is no template, or when it cannot write a question, an answer and a question.
    """
    text = chat_template(tokenizer, template)
    if text is None:
        raise UserError(
            "chat: the tokenizer of this run has no chat template; give one with --template FILE, a Jinja file that "
            "writes `messages` as the texts that the model was trained on"
        )
    chat = ChatFormat(tokenizer, text, datetime.datetime.now if date is None else lambda: date)
    chat.render(_turns(), answer_next=False)
    return chat


def chat_template(tokenizer: Tokenizer, file: Path | None = None) -> str | None:
    """Return the text of the Jinja ``file``, else the template of ``tokenizer``, None if it has none.

    Raises UserError when the file cannot be read.
    """
    if file is None:
        return tokenizer.chat.template if isinstance(tokenizer, HuggingFaceTokenizer) else None
    if not file.is_file():
        raise UserError(f"--template: {file} does not exist; name a Jinja file")
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--template: {file} is no text in UTF-8 ({error}); save it as UTF-8") from None


def fit(chat: ChatFormat, messages: Sequence[Message], most: int) -> tuple[list[int], list[Message]]:
    """Return at most ``most`` ids of ``messages``, without the oldest turns if need be, and the messages that remain.

    A turn is a question with its answer; the system message and the last question stay. Raises UserError when these
    two are too long.
    """
    kept = list(messages)
    while len(ids := chat.encode(kept)) > most:
        first = int(kept[0]["role"] == "system")
        turns = [index for index in range(first + 1, len(kept)) if kept[index]["role"] == "user"]
        if not turns:
            raise UserError(f"chat: this question alone has {len(ids)} tokens and at most {most} fit; shorten it")
        del kept[first : turns[0]]
    return ids, kept


def _named(tokenizer: Tokenizer) -> Mapping[str, str]:
    """Return the special tokens by the names that templates use for them."""
    return tokenizer.chat.tokens if isinstance(tokenizer, HuggingFaceTokenizer) else {"eos_token": END_OF_TEXT}
