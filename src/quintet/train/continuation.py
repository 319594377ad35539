"""Texts that a model writes, from prompts of ids to text that ends where it should."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from quintet.errors import UserError
from quintet.model import Model
from quintet.model.generate import GenerationSettings, beam_search, generate
from quintet.tokenize import TextStream, Tokenizer
from quintet.tokenize.base import NO_END
from quintet.tokenize.stop import StopAt
from quintet.train.compute import Compute


@dataclass
class Continuation:
    """What was written after a prompt: ``tokens`` were drawn, and ``ended`` says why no more."""

    text: str = ""
    tokens: int = 0
    ended: Literal["end", "stop", "length"] = "length"


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of ``prompt``; an empty one starts a new document. Raises UserError for that where documents do not end."""
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.end_id == NO_END:
        raise UserError(
            "prompt: is empty, and without tokenizer.end_id there is no id that a document begins behind; give ids as "
            "numbers (--prompt '12 7 9')"
        )
    return ids or [tokenizer.end_id]


def write_continuations(
    model: Model,
    tokenizer: Tokenizer,
    compute: Compute,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    end_ids: Collection[int] = (),
    stops: Sequence[str] = (),
    fresh: bool = False,
    first_row: int = 0,
    static: bool = False,
    compile: bool = False,
    show: Callable[[str], object] | None = None,
) -> list[Continuation]:
    """Continue all ``prompts`` side by side, each to the end of its document or one of ``end_ids``, to one of the
    texts ``stops``, or to ``settings.max_tokens``.

    ``fresh`` texts begin anew instead of carrying on a text that stands already (see ``TextStream``), and so does one
    after a prompt that is only the end of a document. ``show`` gets the pieces of the first text as soon as they are
    certain. The other arguments are those of ``generate``.
    """
    found = [Continuation() for _ in prompts]
    ends = [_is_end(tokenizer, ids) for ids in prompts]
    streams = [TextStream(tokenizer, continues=not fresh and not end) for end in ends]
    cuts = [StopAt(stops) for _ in prompts]
    steps = generate(
        model,
        prompts,
        settings,
        {tokenizer.end_id, *end_ids},
        allowed_ids=tokenizer.vocab_size,
        preceding=[int(end) for end in ends],
        first_row=first_row,
        static=static,
        compile=compile,
    )

    def add(row: int, text: str) -> None:
        found[row].text += text
        if row == 0 and show is not None and text:
            show(text)

    with compute.autocast():
        for step in steps:
            for row, token in enumerate(step):
                if token is None or cuts[row].stopped:
                    continue
                found[row].tokens += 1
                add(row, cuts[row].push(streams[row].push(token)))
            if all(token is None or cut.stopped for token, cut in zip(step, cuts, strict=True)):
                break
    for row, (one, stream, cut) in enumerate(zip(found, streams, cuts, strict=True)):
        add(row, cut.push(stream.finish()))
        add(row, cut.finish())
        one.ended = "stop" if cut.stopped else "length" if one.tokens == settings.max_tokens else "end"
    return found


def search_continuation(
    model: Model,
    tokenizer: Tokenizer,
    compute: Compute,
    prompt: list[int],
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
            {tokenizer.end_id},
            allowed_ids=tokenizer.vocab_size,
            preceding=int(_is_end(tokenizer, prompt)),
        )
    stream, cut = TextStream(tokenizer, continues=not _is_end(tokenizer, prompt)), StopAt(stops)
    text = "".join([cut.push(stream.push(token)) for token in ids] + [cut.push(stream.finish()), cut.finish()])
    return Continuation(text, len(ids), "stop" if cut.stopped else "length" if len(ids) == max_tokens else "end")


def _is_end(tokenizer: Tokenizer, prompt: list[int]) -> bool:
    """Whether ``prompt`` is only the end of a document, so that what is written behind it is another."""
    return prompt == [tokenizer.end_id]
