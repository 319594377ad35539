"""Texts that a model writes, from prompts of ids to text that ends where it should."""

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
    """A text that was written after a prompt: ``tokens`` were drawn, and ``ended`` says why no more."""

    text: str = ""
    tokens: int = 0
    ended: Literal["end", "stop", "length"] = "length"


def prompt_ids(tokenizer: Tokenizer, bounds: TextBounds, prompt: str) -> list[int]:
    """Ids of ``prompt``; an empty one starts a new document. Raises UserError for that where documents do not end."""
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
    """Continue all ``prompts`` side by side, each to where ``bounds`` ends it, to one of the texts ``stops``, or to
    ``settings.max_tokens``.

    Where a text begins with ``prefix`` that is left out. A text carries on its prompt (see ``TextStream``) unless the
    prompt holds only what stands before a text. ``show`` gets the pieces of the first text as soon as they are
    certain. The other arguments are those of ``generate``.
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
    return [text.found for text in texts]


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
    """Yield the pieces of what `write_continuations` writes after ``prompt``, each as soon as it is certain."""
    texts = [_Text(tokenizer, bounds, stops, prompt)]
    for _, piece in _pieces(
        model, tokenizer, compute, [prompt], texts, settings, bounds, static=static, compile=compile
    ):
        # The caller's own computations are none of ours, and leaving autocast would drop the weights that it has cast.
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
    """Write ``texts`` after ``prompts``, and yield each piece that becomes certain, with the row of its text."""
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
    """One text while its ids arrive."""

    def __init__(
        self, tokenizer: Tokenizer, bounds: TextBounds, stops: Sequence[str], prompt: Sequence[int], prefix: str = ""
    ) -> None:
        self.found = Continuation()
        self._special = {number: text for text, number in special_tokens(tokenizer).items()}
        self._ends = [self._special[number] for number in bounds.stop_ids if number in self._special]
        self._stream = TextStream(tokenizer, continues=not bounds.starts(prompt))
        self._cut = StopAt([*bounds.stops, *stops])
        self._head = _Head(prefix)

    @property
    def stopped(self) -> bool:
        """True if a stop string has ended it."""
        return self._cut.stopped

    def push(self, token: int) -> str:
        """The characters that are certain with ``token``."""
        self.found.tokens += 1
        piece = self._stream.push(token)
        return self._add(self._cut.push(piece, self._special.get(token, ""), self._stream.dropped))

    def finish(self, most: int) -> str:
        """The characters that are left when no more than ``most`` tokens were asked for and no more came."""
        text = self._cut.push(self._stream.finish())
        ended = self.found.tokens < most
        text += self._cut.finish(self._ends if ended else ())  # the id that ends a text is not yielded
        self.found.ended = "stop" if self.stopped else "end" if ended else "length"
        return self._add(text, last=True)

    def _add(self, text: str, *, last: bool = False) -> str:
        text = self._head.push(text, last=last)
        self.found.text += text
        return text


class _Head:
    """Passes on a text without the ``prefix`` that it may begin with."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._held = prefix, ""

    def push(self, text: str, *, last: bool = False) -> str:
        """The characters that are certain with ``text`` to be none of the prefix; all of them with the ``last``."""
        text = self._held + text
        if not last and len(text) < len(self._prefix) and self._prefix.startswith(text):
            self._held = text
            return ""
        found = text.removeprefix(self._prefix)
        self._prefix = self._held = ""
        return found


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
    """The likeliest continuation that ``beams`` beams find, up to one of ``stops``; see ``beam_search``.

    The search does not know of ``stops``: what it finds is cut there.
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
    return text.found
