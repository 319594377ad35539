"""Let a model write: by drawing one token after the other, or by a search for likely continuations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.errors import UserError
from quintet.model.cache import KVCache
from quintet.model.sampling import GenerationSettings, choose
from quintet.model.transformer import Transformer

__all__ = ["GenerationSettings", "beam_search", "generate"]


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt_ids: list[int],
    settings: GenerationSettings,
    end_id: int | None,
    *,
    allowed_ids: int | None = None,
) -> Iterator[int]:
    """Continue ``prompt_ids`` and yield each id as it is chosen, until ``end_id``, which is not yielded, or
    ``settings.max_tokens``.

    Only ids below ``allowed_ids`` are chosen, for models with more rows than their tokenizer has ids. Where the text
    outgrows ``model.context_length`` the model goes on with the last half of the context, encoded anew: every position
    stays one that the model was built for, and the cost of a token stays bounded. Of a longer prompt the end counts.
    While it runs the model is in evaluation mode; afterwards it is as it was. Raises UserError for an empty prompt.
    """
    text = _checked(prompt_ids)
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    limit = model.context_length
    cache, new = _cache(model, len(text) + settings.max_tokens), text[-limit:]
    with _evaluating(model):
        for _ in range(settings.max_tokens):
            if cache.length + len(new) > limit:
                cache, new = _cache(model, limit), text[-max(1, limit // 2) :]
            logits = _next_logits(model, [new], cache, allowed_ids)
            seen = torch.tensor([text], device=model.device)
            chosen = int(choose(logits, seen, settings, generator))
            if chosen == end_id:
                return
            yield chosen
            text.append(chosen)
            new = [chosen]


@dataclass(frozen=True)
class _Beam:
    score: float
    written: list[int]


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt_ids: list[int],
    beams: int,
    max_tokens: int,
    end_id: int | None,
    length_penalty: float = 1.0,
    *,
    allowed_ids: int | None = None,
) -> list[int]:
    """The best continuation of ``prompt_ids`` that a search with ``beams`` beams finds, without ``end_id``.

    A continuation of n tokens, its end counted, is rated by its log-probability / n ** ``length_penalty``. The search
    ends when ``beams`` continuations are complete and the best open one is rated below them all. Prompt and output have
    to fit ``model.context_length``: the beginning of a longer prompt is left out, down to half the context, and then
    the output ends with the context. Raises UserError for an empty prompt or fewer than one beam.
    """
    if beams < 1:
        raise UserError(f"beams: {beams} must be 1 or more")
    limit = model.context_length
    prompt = _checked(prompt_ids)[-max(1, limit // 2, limit + 1 - max_tokens) :]
    steps = min(max_tokens, limit + 1 - len(prompt))
    cache, new = _cache(model, len(prompt) + steps), [prompt]
    open_beams, complete = [_Beam(0.0, [])], list[_Beam]()
    with _evaluating(model):
        for count in range(1, steps + 1):
            logits = _next_logits(model, new, cache, allowed_ids)
            candidates = _best_candidates(logits, open_beams, 2 * beams)
            survivors: list[tuple[int, _Beam]] = []
            for rank, (row, chosen, score) in enumerate(candidates):
                ended = chosen == end_id
                written = open_beams[row].written + ([] if ended else [chosen])
                if not ended and count < steps:
                    survivors.append((row, _Beam(score, written)))
                elif rank < beams:  # an end that ranks below the open beams is none of the best
                    complete.append(_Beam(score / count**length_penalty, written))
            survivors = survivors[:beams]
            complete = sorted(complete, key=lambda beam: beam.score, reverse=True)[:beams]
            if not survivors:
                break
            open_beams = [beam for _, beam in survivors]
            if len(complete) == beams and open_beams[0].score / count**length_penalty <= complete[-1].score:
                break
            cache.select(torch.tensor([row for row, _ in survivors], device=model.device))
            new = [beam.written[-1:] for beam in open_beams]
    return complete[0].written if complete else []


def _best_candidates(logits: Tensor, beams: list[_Beam], count: int) -> list[tuple[int, int, float]]:
    """(row, id, score) of the ``count`` best continuations of ``beams`` by one token, best first."""
    before = torch.tensor([[beam.score] for beam in beams], device=logits.device)
    scores = (before + logits.log_softmax(dim=-1)).flatten()
    best = scores.topk(min(count, scores.numel()))
    ids = logits.shape[-1]
    return [
        (place // ids, place % ids, score)
        for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _next_logits(model: Transformer, new: list[list[int]], cache: KVCache, allowed_ids: int | None) -> Tensor:
    """fp32 logits [batch, allowed ids] after the ids ``new`` [batch, length], which the cache takes up."""
    # Each step is one position longer, and a compiled block would be compiled again for it.
    with torch.compiler.set_stance("force_eager"):
        hidden = model.hidden(torch.tensor(new, device=model.device), cache=cache)[:, -1]
        return model.logits(hidden)[:, :allowed_ids].float()


def _cache(model: Transformer, positions: int) -> KVCache:
    return KVCache(len(model.blocks), min(positions, model.context_length))


def _checked(prompt_ids: list[int]) -> list[int]:
    if not prompt_ids:
        raise UserError("the prompt has no tokens; to start a new document give the tokenizer's end-of-document id")
    return list(prompt_ids)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
