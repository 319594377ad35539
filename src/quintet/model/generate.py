"""Text generation: sampling one token after the other, or a beam search for likely continuations."""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from quintet.config.generation import GenerationSettings
from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model.build import Model
from quintet.model.dropout import evaluation_mode
from quintet.model.kernels import varying_lengths
from quintet.model.mask import documents_after, leading
from quintet.model.sampling import choose
from quintet.model.typed import as_list, compiled
from quintet.randomness import key

_CAPACITY = 256
"""The capacity of a cache with a compiled step is a multiple of this number of positions, or the whole context."""


def tokens_ahead(device: torch.device) -> int:
    """Return the number of tokens that ``device`` generates before the host reads them, if nobody waits for each.

    A GPU is idle while the host reads; a CPU would only generate tokens that are then discarded.
    """
    return 16 if device.type == "cuda" else 1


class Decoder:
    """The logits of ``model`` after texts that grow by a token per step, up to ``room`` positions or its context.

    A causal model caches the keys and values of the tokens that it has read. With bidirectional attention later tokens
    change the features of earlier ones, so the whole texts are read again for each token. Raises UserError for a
    ``static`` cache in that case.
    """

    def __init__(
        self,
        model: Model,
        room: int,
        allowed_ids: int | None = None,
        *,
        static: bool = False,
        compile: bool = False,
    ) -> None:
        assert static or not compile, "a compiled step needs a cache of one shape"
        config = model.config
        self._anew = isinstance(config, TransformerConfig) and config.attention.kind == "bidirectional"
        if self._anew and static:
            raise UserError(
                "generate: bidirectional attention reads the whole text again for each token and has no cache; leave "
                "--static-cache out"
            )
        # Each new shape would be compiled again.
        room = -(-room // _CAPACITY) * _CAPACITY if compile else room
        self._room = min(model.context_length, room)
        self._model, self._allowed, self._static = model, allowed_ids, static
        self._tells_documents = config.tells_documents
        # The step of one token is so short that launching its kernels one by one takes longer than they run.
        mode = "reduce-overhead" if model.device.type == "cuda" else None
        self._compiled = compiled(self._logits, dynamic=False, mode=mode) if compile else None
        self._texts: list[list[int]] = []
        self._prompts: list[int] = []
        self._preceding: list[int] = []
        self._length = 0

    @property
    def full(self) -> bool:
        """True if there is no room for another token."""
        return self._length >= self._room

    def begin(self, texts: list[list[int]], prompts: list[int], preceding: list[int]) -> Tensor:
        """Start with new ``texts`` and return fp32 logits [batch, allowed ids] of the token after each.

        ``prompts`` counts the tokens at the start of each text that see one another, for the prefix mask, and
        ``preceding`` those that belong to the document before, for masks that separate documents.
        """
        self._texts, self._prompts, self._preceding = texts, prompts, preceding
        self._length = max(map(len, texts))
        padding = [self._length - len(text) for text in texts]
        device = self._model.device
        ids = torch.tensor([[0] * left + text for left, text in zip(padding, texts, strict=True)], device=device)
        self._cache = self._model.start_cache(
            len(texts), self._room, padding=padding if any(padding) else None, static=self._static
        )
        documents = None
        before, prompt, left = torch.tensor([preceding, prompts, padding], device=device)
        if self._tells_documents and any(preceding):
            documents = documents_after(before, self._length, left)
        # Each new length would be compiled again.
        with varying_lengths():
            return self._logits(ids, documents, leading(prompt, self._length, left))

    def read(self, ids: Tensor) -> Tensor:
        """Append one of ``ids``, int64 [batch] on the device, to each text; return fp32 logits [batch, allowed ids]."""
        assert not self.full
        if self._anew:
            grown = [[*text, token] for text, token in zip(self._texts, as_list(ids), strict=True)]
            return self.begin(grown, self._prompts, self._preceding)
        self._length += 1
        documents = torch.ones_like(ids)[:, None] if self._tells_documents and any(self._preceding) else None
        if self._compiled is not None:
            return self._compiled(ids[:, None], documents, None)
        with varying_lengths():
            return self._logits(ids[:, None], documents, None)

    def select(self, rows: Tensor) -> None:
        """Replace row i by the former row ``rows[i]``, int64 [new batch] on the device; all texts start alike."""
        if self._anew:
            numbers = as_list(rows)
            self._texts = [self._texts[row] for row in numbers]
            self._prompts = [self._prompts[row] for row in numbers]
            self._preceding = [self._preceding[row] for row in numbers]
        self._cache.select(rows)

    def _logits(self, ids: Tensor, documents: Tensor | None, prompts: Tensor | None) -> Tensor:
        """Return fp32 logits [batch, allowed ids] after int64 ``ids`` [batch, length]; ``prompts`` is bool of their
        shape."""
        hidden = self._model.hidden(ids, documents=documents, prompts=prompts, cache=self._cache)[:, -1]
        return self._model.logits(hidden)[:, : self._allowed].float()


@torch.inference_mode()
def generate(
    model: Model,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    end_ids: Collection[int] = (),
    *,
    allowed_ids: int | None = None,
    preceding: Sequence[int] = (),
    first_row: int = 0,
    static: bool = False,
    compile: bool = False,
    ahead: int = 1,
) -> Iterator[list[int | None]]:
    """Continue each of ``prompts`` and yield the chosen ids of all rows, one list per step.

    A row ends with one of ``end_ids``, which is not yielded, and yields None from then on; all rows end after
    ``settings.max_tokens``. Up to the rounding of sums, the text of a row does not depend on the other rows: the
    padding on the left of shorter prompts is masked, and each row draws from a generator of its own, keyed by
    ``settings.seed`` and the number of the row, counted from ``first_row``.

    Only ids below ``allowed_ids`` are chosen, for models with more rows than their tokenizer has ids. Each text is one
    document, except that the first ``preceding`` ids of each prompt, none by default, belong to the document before,
    for masks that separate documents. With ``static`` the cache has one shape for all tokens, and with ``compile`` the
    step of one token is compiled for it. The device chooses ``ahead`` tokens before the host reads them, and so at most
    ``ahead`` - 1 more than are needed.

    When a text outgrows ``model.context_length``, the model reads the last half of the context again and continues from
    there, so that no position is beyond those that it was built for and the cost of a token stays bounded. A longer
    prompt is cut to its end. The model is in evaluation mode until the last token. Raises UserError for an empty
    prompt, and for ``static`` with bidirectional attention.
    """
    texts = [_checked(prompt) for prompt in prompts]
    if not texts:
        return
    generators = _generators(model.device, settings.seed, range(first_row, first_row + len(texts)))
    windows = _Windows(texts, list(preceding) or [0] * len(texts), model.context_length)
    decoder = Decoder(model, max(map(len, texts)) + settings.max_tokens, allowed_ids, static=static, compile=compile)
    seen = _side_by_side(texts, filler=model.vocab_size).to(model.device)
    alive = [True] * len(texts)
    unseen, chosen = list[Tensor](), torch.empty(0)
    with evaluation_mode(model):
        for count in range(1, settings.max_tokens + 1):
            if count == 1 or decoder.full:
                logits = decoder.begin(windows.cut(alive), windows.prompts, windows.preceding)
            else:
                logits = decoder.read(chosen)
            chosen = choose(logits, seen, settings, generators)
            if settings.repetition_penalty != 1.0:
                seen = torch.cat([seen, chosen[:, None]], dim=1)
            unseen.append(chosen)
            if len(unseen) < ahead and count < settings.max_tokens and not decoder.full:
                continue
            for ids in as_list(torch.stack(unseen)):
                alive = [living and token not in end_ids for living, token in zip(alive, ids, strict=True)]
                if not any(alive):
                    return
                yield [token if living else None for living, token in zip(alive, ids, strict=True)]
                for text, token in zip(texts, ids, strict=True):
                    text.append(token)
            unseen.clear()


def _generators(device: torch.device, seed: int, rows: range) -> list[torch.Generator]:
    """Return a generator on ``device`` for each of ``rows``, keyed by ``seed`` and the number of the row."""
    return [torch.Generator(device).manual_seed(key(seed, "row", row)) for row in rows]


class _Windows:
    """The part of each text that the model reads: the whole text until it outgrows the context, then its end."""

    def __init__(self, texts: list[list[int]], preceding: list[int], limit: int) -> None:
        self._texts, self._preceding, self._limit = texts, preceding, limit
        self._prompts = [len(text) for text in texts]
        self._begins = [max(0, len(text) - limit) for text in texts]

    def cut(self, alive: list[bool]) -> list[list[int]]:
        """Return the windows, cut to half the context if they have outgrown it; of an ended text only one token."""
        for row, text in enumerate(self._texts):
            if not alive[row]:
                self._begins[row] = len(text) - 1
            elif len(text) - self._begins[row] > self._limit:
                self._begins[row] = len(text) - max(1, self._limit // 2)
        return [text[begin:] for text, begin in zip(self._texts, self._begins, strict=True)]

    @property
    def prompts(self) -> list[int]:
        """Counts of the tokens of each window that belong to the prompt."""
        return [max(0, prompt - begin) for prompt, begin in zip(self._prompts, self._begins, strict=True)]

    @property
    def preceding(self) -> list[int]:
        """Counts of the tokens of each window that belong to the document before."""
        return [max(0, count - begin) for count, begin in zip(self._preceding, self._begins, strict=True)]


@torch.inference_mode()
def beam_search(
    model: Model,
    prompt_ids: list[int],
    beams: int,
    max_tokens: int,
    end_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    *,
    allowed_ids: int | None = None,
    preceding: int = 0,
    ahead: int | None = None,
) -> list[int]:
    """Return the best continuation of ``prompt_ids`` that a search with ``beams`` beams finds, without its end id.

    The score of a continuation of n tokens, its end included, is its log-probability / n ** ``length_penalty``. The
    search ends when ``beams`` continuations are complete and the best open one scores below all of them. Prompt and
    output have to fit ``model.context_length``: a longer prompt loses its beginning, down to half the context, and the
    output ends with the context. ``end_ids``, ``allowed_ids`` and ``preceding`` are as in ``generate``. The host checks
    the end of the search every ``ahead`` tokens, by default `tokens_ahead`. Raises UserError for an empty prompt or
    fewer than one beam.
    """
    if beams < 1:
        raise UserError(f"beams: {beams} must be 1 or more")
    limit = model.context_length
    prompt = _checked(prompt_ids)[-max(1, limit // 2, limit + 1 - max_tokens) :]
    steps = min(max_tokens, limit + 1 - len(prompt))
    before = max(0, preceding - (len(prompt_ids) - len(prompt)))
    decoder = Decoder(model, len(prompt) + steps, allowed_ids)
    search = _Search(beams, steps, end_ids, length_penalty, model.device)
    looks = tokens_ahead(model.device) if ahead is None else ahead
    with evaluation_mode(model):
        for count in range(1, steps + 1):
            logits = decoder.begin([prompt], [len(prompt)], [before]) if count == 1 else decoder.read(search.last)
            rows = search.step(logits, count)
            if count == steps or (count % looks == 0 and search.ended):
                break
            decoder.select(rows)
    return search.best


class _Search:
    """The beams of a search for texts of up to ``steps`` tokens, stored and ranked on ``device``.

    Open beams have a ``score``, fp32 [rows], -inf in unused rows, and their ``written`` ids, int64 [rows, steps].
    Complete texts, best first, have scores, fp32 [beams], ids, int64 [beams, steps], and lengths in tokens. Steps after
    the end of the search do not change the complete texts.
    """

    def __init__(
        self, beams: int, steps: int, end_ids: Collection[int], length_penalty: float, device: torch.device
    ) -> None:
        self._beams, self._steps, self._length_penalty = beams, steps, length_penalty
        self._ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
        self._ended = torch.zeros((), dtype=torch.bool, device=device)
        self._score = torch.zeros(1, device=device)
        self._written = torch.zeros(1, steps, dtype=torch.long, device=device)
        self._complete = torch.full((beams,), -math.inf, device=device)
        self._texts = torch.zeros(beams, steps, dtype=torch.long, device=device)
        self._lengths = torch.zeros(beams, dtype=torch.long, device=device)
        self.last = torch.zeros(1, dtype=torch.long, device=device)
        """The last id of each open beam, int64 [rows]."""

    def step(self, logits: Tensor, count: int) -> Tensor:
        """Extend the beams by token number ``count``, whose fp32 ``logits`` are [rows, ids], and return the row that
        each open beam continues, int64 [new rows]."""
        scores = (self._score[:, None] + logits.log_softmax(dim=-1)).flatten()
        best = scores.topk(min(2 * self._beams, scores.numel()))
        rows, chosen = best.indices // logits.shape[-1], best.indices % logits.shape[-1]
        possible = best.values > -math.inf
        ended = (chosen[:, None] == self._ends).any(dim=1)
        going = possible & ~ended if count < self._steps else torch.zeros_like(possible)
        written = self._written.index_select(0, rows)
        written[:, count - 1] = chosen
        self._keep_complete(best.values, possible & ~going & ~self._ended, written, count - ended.long(), count)
        first = (~going).to(torch.int8).sort(stable=True).indices[: self._beams]
        self._score = torch.where(going, best.values, -math.inf).index_select(0, first)
        self._written, self.last = written.index_select(0, first), chosen.index_select(0, first)
        worst = self._complete[-1]
        beaten = (worst > -math.inf) & (self._score[0] / count**self._length_penalty <= worst)
        self._ended = self._ended | beaten | ~going.any()
        return rows.index_select(0, first)

    def _keep_complete(self, scores: Tensor, complete: Tensor, written: Tensor, lengths: Tensor, count: int) -> None:
        """Add the candidates that are ``complete``, bool [candidates], to the complete texts. Their ``scores``, best
        first, are fp32 [candidates], ``written`` is int64 [candidates, steps], ``lengths`` int64 [candidates]."""
        first = slice(self._beams)  # an end that ranks below the open beams is none of the best
        rated = torch.where(complete[first], scores[first] / count**self._length_penalty, -math.inf)
        ranked = torch.cat([self._complete, rated]).sort(descending=True, stable=True)
        kept = ranked.indices[first]
        self._complete = ranked.values[first]
        self._texts = torch.cat([self._texts, written[first]]).index_select(0, kept)
        self._lengths = torch.cat([self._lengths, lengths[first]]).index_select(0, kept)

    @property
    def ended(self) -> bool:
        """True if no open beam can become one of the best; the host waits for the device."""
        return bool(self._ended)

    @property
    def best(self) -> list[int]:
        """The ids of the best complete text; [] if there is none."""
        length, text = as_list(self._lengths[:1]), as_list(self._texts[0])
        return text[: length[0]]


def _side_by_side(texts: list[list[int]], filler: int) -> Tensor:
    """Return ``texts`` as int64 [texts, longest], with ``filler`` on the left of shorter ones.

    >>> _side_by_side([[1, 2], [3]], filler=0)
    tensor([[1, 2],
            [0, 3]])
    """
    longest = max(map(len, texts))
    return torch.tensor([[filler] * (longest - len(text)) + text for text in texts])


def _checked(prompt_ids: list[int]) -> list[int]:
    if not prompt_ids:
        raise UserError("the prompt has no tokens; to start a new document give the tokenizer's end-of-document id")
    return list(prompt_ids)
