"""Continuations of prompts: from the ids that a model generates to text that ends where it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from quintet.config.generation import GenerationSettings
from quintet.errors import UserError
from quintet.evaluate.model_and_tokenizer import Computing
from quintet.model import Model
from quintet.model.generate import beam_search, generate, tokens_ahead
from quintet.tokenize import TextStream, Tokenizer
from quintet.tokenize.bounds import TextBounds, special_tokens
from quintet.tokenize.stream import StopAt


@dataclass
class Continuation:
    """A text that was written after a prompt, the number of its ``tokens``, and why it ``ended``."""

    text: str = ""
    tokens: int = 0
    ended: Literal["end", "stop", "length"] = "length"


def prompt_ids(tokenizer: Tokenizer, bounds: TextBounds, prompt: str) -> list[int]:
    """Return the ids of ``prompt``. An empty one starts a new document. Raises UserError if it is empty and documents
    have neither begin nor end ids."""
    ids = bounds.prompt(tokenizer.encode(prompt))
    if not ids:
        raise UserError(
            "prompt: is empty, and without tokenizer.end_id there is no id that a document follows; give ids as "
            "numbers (--prompt '12 7 9')"
        )
    return ids


def write_continuations(
    model: Model,
    tokenizer: Tokenizer,
    compute: Computing,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    bounds: TextBounds,
    *,
    stops: Sequence[str] = (),
    prefix: str = "",
    first_row: int = 0,
    static: bool = False,
    compile: bool = False,
    show: Callable[[str], object] | None = None,
) -> list[Continuation]:
    """Continue all ``prompts`` side by side, each to its end by ``bounds``, to one of the texts ``stops``, or to
    ``settings.max_tokens``.

    A ``prefix`` that a text begins with is dropped. A text continues its prompt (see ``TextStream``), unless the prompt
    has only the ids that precede a text. ``show`` gets the pieces of the first text as soon as they are certain. The
    other arguments are those of ``generate``.
    """
    texts = [_Text(tokenizer, bounds, stops, prompt, prefix) for prompt in prompts]
    for row, piece in _pieces(
        model,
        tokenizer,
        compute,
        prompts,
        texts,
        settings,
        bounds,
        first_row=first_row,
        static=static,
        compile=compile,
        ahead=1 if show is not None else tokens_ahead(compute.device),
    ):
        if row == 0 and show is not None:
            show(piece)
    return [text.result for text in texts]


def stream_continuation(
    model: Model,
    tokenizer: Tokenizer,
    compute: Computing,
    prompt: list[int],
    settings: GenerationSettings,
    bounds: TextBounds,
    *,
    stops: Sequence[str] = (),
    static: bool = False,
    compile: bool = False,
) -> Iterator[str]:
    """Yield the pieces of the text that `write_continuations` writes after ``prompt``, each once it is certain."""
    texts = [_Text(tokenizer, bounds, stops, prompt)]
    for _, piece in _pieces(
        model, tokenizer, compute, [prompt], texts, settings, bounds, static=static, compile=compile
    ):
        # The caller may compute between two pieces; leaving autocast would drop the weights that it has cast.
        with torch.autocast(compute.device.type, enabled=False):
            yield piece


def _pieces(
    model: Model,
    tokenizer: Tokenizer,
    compute: Computing,
    prompts: Sequence[list[int]],
    texts: Sequence[_Text],
    settings: GenerationSettings,
    bounds: TextBounds,
    *,
    first_row: int = 0,
    static: bool = False,
    compile: bool = False,
    ahead: int = 1,
) -> Iterator[tuple[int, str]]:
    """Write ``texts`` after ``prompts``, and yield the row of a text and each of its pieces that becomes certain."""
    steps = generate(
        model,
        prompts,
        settings,
        bounds.stop_ids,
        allowed_ids=tokenizer.vocab_size,
        preceding=[bounds.preceding * bounds.starts(ids) for ids in prompts],
        first_row=first_row,
        static=static,
        compile=compile,
        ahead=ahead,
    )

    with compute.autocast():
        for step in steps:
            for row, token in enumerate(step):
                if token is not None and not texts[row].stopped and (piece := texts[row].push(token)):
                    yield row, piece
            if all(token is None or text.stopped for token, text in zip(step, texts, strict=True)):
                break
    for row, text in enumerate(texts):
        if piece := text.finish(settings.max_tokens):
            yield row, piece


class _Text:
    """A text while its ids arrive."""

    def __init__(
        self, tokenizer: Tokenizer, bounds: TextBounds, stops: Sequence[str], prompt: Sequence[int], prefix: str = ""
    ) -> None:
        self.result = Continuation()
        self._special = {number: text for text, number in special_tokens(tokenizer).items()}
        self._ends = [self._special[number] for number in bounds.stop_ids if number in self._special]
        self._stream = TextStream(tokenizer, continues=not bounds.starts(prompt))
        self._cut = StopAt([*bounds.stops, *stops])
        self._head = _Head(prefix)

    @property
    def stopped(self) -> bool:
        """True if a stop string has ended the text."""
        return self._cut.stopped

    def push(self, token: int) -> str:
        """Add ``token`` and return the characters that are certain now."""
        self.result.tokens += 1
        piece = self._stream.push(token)
        return self._add(self._cut.push(piece, self._special.get(token, ""), self._stream.dropped))

    def finish(self, most: int) -> str:
        """Return the remaining characters; ``most`` is the number of tokens after which generation stops."""
        text = self._cut.push(self._stream.finish())
        ended = self.result.tokens < most
        text += self._cut.finish(self._ends if ended else ())  # the id that ends a text does not arrive
        self.result.ended = "stop" if self.stopped else "end" if ended else "length"
        return self._add(text, last=True)

    def _add(self, text: str, *, last: bool = False) -> str:
        text = self._head.push(text, last=last)
        self.result.text += text
        return text


class _Head:
    """Removes the ``prefix`` that a text may begin with."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._held = prefix, ""

    def push(self, text: str, *, last: bool = False) -> str:
        """Add ``text`` and return the characters that are certainly not of the prefix; all if it is the ``last``."""
        text = self._held + text
        if not last and len(text) < len(self._prefix) and self._prefix.startswith(text):
            self._held = text
            return ""
        text = text.removeprefix(self._prefix)
        self._prefix = self._held = ""
        return text


def search_continuation(
    model: Model,
    tokenizer: Tokenizer,
    compute: Computing,
    prompt: list[int],
    bounds: TextBounds,
    beams: int,
    max_tokens: int,
    stops: Sequence[str] = (),
) -> Continuation:
    """Return the likeliest continuation that ``beams`` beams find; see ``beam_search``.

    The search ignores ``stops``: the text that it finds is cut there.
    """
    with compute.autocast():
        ids = beam_search(
            model,
            prompt,
            beams,
            max_tokens,
            bounds.stop_ids,
            allowed_ids=tokenizer.vocab_size,
            preceding=bounds.preceding * bounds.starts(prompt),
        )
    text = _Text(tokenizer, bounds, stops, prompt)
    for token in ids:
        text.push(token)
    text.finish(max_tokens)
    return text.result
