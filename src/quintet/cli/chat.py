"""`quintet chat` and `play`: use a model interactively, in the terminal or on a page in the browser."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet import api
from quintet.cli.inputs import WRITER, Checkpoint, Weights, WeightsOption, echo
from quintet.config.names import local_path
from quintet.errors import UserError

if TYPE_CHECKING:
    from quintet.config.generation import GenerationSettings
    from quintet.evaluate.language_model import LanguageModel
    from quintet.tokenize.chat import ChatFormat, Message

_TEMPERATURE = 0.7
_COMMANDS = "/reset, /system TEXT, /save FILE, /exit"


def chat(
    run: Annotated[str, typer.Argument(help=WRITER)],
    system: Annotated[str, typer.Option(help="system message before the conversation")] = "",
    template: Annotated[
        Path | None, typer.Option(help="Jinja file that writes the conversation; the tokenizer's own when not given")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer at most")] = 512,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="divides the logits; 0 takes the likeliest token; the checkpoint's own, or 0.7"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="draw from the fewest likeliest tokens with this total probability"),
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed and questions give the same answers")] = 0,
    date: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="the day that a template gets as today's; today when not given"),
    ] = None,
    checkpoint: Checkpoint = "latest",
    weights: WeightsOption = Weights.NARROW,
) -> None:
    """Talk with a trained model: each line is a question; /exit or the end of the input ends the conversation.

    /reset forgets the conversation, /system TEXT sets the system message, /save FILE saves the conversation as JSON.
    """
    from quintet.tokenize.chat import chat_format

    trained = api.load(run, checkpoint, precision="auto", weights=weights.value)
    trained.check_writes()
    settings = trained.settings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        default_temperature=_TEMPERATURE,
        say=partial(echo, err=True),
    )
    talk = _Talk(trained, chat_format(trained.tokenizer, template, date), settings, system.strip())
    while (line := _read_line()) is not None:
        line = line.rstrip("\r\n")
        word, _, rest = line.partition(" ")
        match word:
            case _ if not line.strip():
                continue
            case "/exit":
                return
            case "/reset":
                talk.turns.clear()
            case "/system":
                talk.system = rest.strip()
            case "/save":
                _save(talk.messages, rest.strip())
            case _ if word.startswith("/"):
                _note(f"{word} is no command; there are {_COMMANDS} (a space before the / makes it a question)")
            case _:
                talk.ask(line[1:] if line.startswith(" /") else line)


@dataclass
class _Talk:
    """A conversation."""

    trained: LanguageModel
    chat: ChatFormat
    settings: GenerationSettings
    system: str
    turns: list[Message] = field(default_factory=lambda: [])
    asked: int = 0

    @property
    def messages(self) -> list[Message]:
        """All messages, the system message first if there is one."""
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def ask(self, question: str) -> None:
        """Print the answer to ``question`` as it is written, and keep both.

        The oldest turns are dropped until there is room for the answer: ``max_tokens``, or half the context if less.
        """
        from quintet.tokenize.chat import fit

        context = self.trained.model.context_length
        before = self.messages
        try:
            most = max(context - self.settings.max_tokens, context // 2)
            ids, kept = fit(self.chat, [*before, {"role": "user", "content": question}], most)
        except UserError as error:  # about this question; the conversation can continue without it
            for problem in error.problems:
                _note(problem)
            return
        self.turns = [message for message in kept if message["role"] != "system"]
        dropped = len(before) + 1 - len(kept)
        if dropped:
            _note(f"the oldest {dropped} messages no longer fit the context of {context} tokens and are forgotten")
        self.turns.append({"role": "assistant", "content": self._answer(ids)})

    def _answer(self, ids: list[int]) -> str:
        from quintet.evaluate.continuation import write_continuations

        shown: list[str] = []

        def show(text: str) -> None:
            echo(text, nl=False, exact=True)
            shown.append(text)

        room = min(self.settings.max_tokens, self.trained.model.context_length - len(ids))
        try:
            [answer] = write_continuations(
                self.trained.model,
                self.trained.tokenizer,
                self.trained.compute,
                [ids],
                self.settings.model_copy(update={"max_tokens": room}),
                self.chat.bounds(self.trained.bounds),
                prefix=self.chat.answer_prefix,
                first_row=self.asked,  # so that a repeated question gets another answer
                show=show,
            )
            ended = answer.ended
        except KeyboardInterrupt:  # ends the answer, not the conversation
            ended = "interrupted"
        self.asked += 1
        echo("")
        if ended == "length":
            _note(f"the answer was ended after {room} tokens")
        return "".join(shown)  # as it was written, because a saved conversation may be trained on


def _read_line() -> str | None:
    """Return the next line of the input, or None at its end; a terminal shows a prompt and lets the line be edited."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    with suppress(ImportError):  # Windows edits the line itself
        import_module("readline")  # gives input() its editing
    try:
        return input("> ")
    except EOFError:
        echo("")
        return None


def _save(messages: list[Message], name: str) -> None:
    """Write the conversation as a line of a chat data set."""
    if not name:
        _note("/save: name a file")
        return
    try:
        local_path(name).write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:  # a wrong name must not end the conversation
        _note(f"/save: {name} cannot be written ({error.strerror})")


def _note(text: str) -> None:
    echo(f"[{text}]", err=True)


def play(
    run: Annotated[str, typer.Argument(help=WRITER)],
    checkpoint: Checkpoint = "latest",
    host: Annotated[
        str, typer.Option(help="address to serve on; with 0.0.0.0 everyone who can reach this machine can use the page")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to serve on; 0 takes a free one")] = 8501,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only serve the page, do not open it")] = False,
) -> None:
    """Serve a local page for a model of piano music: give it a MIDI file, and see, hear and download what it writes."""
    from quintet.play import serve

    serve(run, checkpoint, host, port, browser=not no_browser)
