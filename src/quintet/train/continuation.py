"""Texts that a model writes, from prompts of ids to text that ends where it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from quintet.errors import UserError
from quintet.model import Model
from quintet.model.generate import GenerationSettings, beam_search, generate
from quintet.tokenize import TextStream, Tokenizer
from quintet.tokenize.bounds import TextBounds, special_tokens
from quintet.tokenize.stop import StopAt
from quintet.train.compute import Compute


@dataclass
class Continuation:
    """What was written after a prompt: ``tokens`` were drawn, and ``ended`` says why no more."""

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
    compute: Compute,
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
    found = [Continuation() for _ in prompts]
    anew = [bounds.starts(ids) for ids in prompts]
    streams = [TextStream(tokenizer, continues=not starts) for starts in anew]
    texts = {number: text for text, number in special_tokens(tokenizer).items()}
    all_stops = [*bounds.stops, *stops]
    cuts = [StopAt(all_stops, texts.values()) for _ in prompts]
    heads = [_Head(prefix) for _ in prompts]
    steps = generate(
        model,
        prompts,
        settings,
        bounds.stop_ids,
        allowed_ids=tokenizer.vocab_size,
        preceding=[bounds.preceding * starts for starts in anew],
        first_row=first_row,
        static=static,
        compile=compile,
    )

    def add(row: int, text: str, *, last: bool = False) -> None:
        text = heads[row].push(text, last=last)
        found[row].text += text
        if row == 0 and show is not None and text:
            show(text)

    with compute.autocast():
        for step in steps:
            for row, token in enumerate(step):
                if token is None or cuts[row].stopped:
                    continue
                found[row].tokens += 1
                add(row, cuts[row].push(streams[row].push(token), texts.get(token, "")))
            if all(token is None or cut.stopped for token, cut in zip(step, cuts, strict=True)):
                break
    for row, (one, stream, cut) in enumerate(zip(found, streams, cuts, strict=True)):
        text, held = cut.push(stream.finish()), cut.finish()
        # An id that ends a text is not yielded, and the text before it may be a part of its stop string.
        part_of_stop = one.tokens < settings.max_tokens and any(held + end in all_stops for end in texts.values())
        add(row, text if part_of_stop else text + held, last=True)
        one.ended = "stop" if cut.stopped else "length" if one.tokens == settings.max_tokens else "end"
    return found


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
    compute: Compute,
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
    texts = {number: text for text, number in special_tokens(tokenizer).items()}
    cut = StopAt([*bounds.stops, *stops], texts.values())
    stream = TextStream(tokenizer, continues=not bounds.starts(prompt))
    written = [cut.push(stream.push(token), texts.get(token, "")) for token in ids]
    text = "".join([*written, cut.push(stream.finish()), cut.finish()])
    return Continuation(text, len(ids), "stop" if cut.stopped else "length" if len(ids) == max_tokens else "end")
