"""Sampling of the next token: pure functions of fp32 logits [batch, vocab], in the order in which they apply."""

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from pydantic import ValidationError
from torch import Tensor

from quintet.config.errors import problems_of
from quintet.config.generation import GenerationOptions, GenerationSettings
from quintet.config.provenance import COMMAND_LINE
from quintet.errors import UserError


def generation_settings(**options: Unpack[GenerationOptions]) -> GenerationSettings:
    """Return the settings in ``options``; one that is None or missing has its default.

    Raises UserError, which names each option outside its range, and one that does not exist.
    """
    values = {name: value for name, value in options.items() if value is not None}
    try:
        return GenerationSettings.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error, values, {(): COMMAND_LINE}, GenerationSettings)
        raise UserError(*(f"{problem.key}: {problem.message}" for problem in problems)) from None


def choose(logits: Tensor, seen: Tensor, settings: GenerationSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the next ids, int64 [batch], from fp32 ``logits`` [batch, vocab] after ids ``seen``, int64 [batch, length].

    Row i is drawn from ``generators[i]``, so that its draw does not depend on the other rows.
    """
    logits = penalise_repetition(logits, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p is not None:
        logits = keep_min_p(logits, settings.min_p)
    # Of independent exponential waiting times with the probabilities as rates, that of an id is the shortest with the
    # id's probability.
    waits = torch.empty_like(logits)
    for row, generator in enumerate(generators):
        waits[row].exponential_(generator=generator)
    return (logits.softmax(dim=-1) / waits).argmax(dim=-1)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of the ids in ``seen`` by ``penalty`` and multiply the negative ones by it.

    ``logits`` are floats [batch, vocab], ``seen`` is int64 [batch, length]. An id counts once, however often it occurs;
    ids outside the vocabulary are ignored.

    >>> penalise_repetition(torch.tensor([[2.0, -1.0, 1.0]]), torch.tensor([[0, 1]]), penalty=2.0)
    tensor([[ 1., -2.,  1.]])
    """
    if penalty == 1.0:
        return logits
    batch, vocab = logits.shape
    # All ids without a logit share one additional column.
    flags = torch.zeros(batch, vocab + 1, dtype=torch.bool, device=logits.device)
    flags = flags.scatter_(1, seen.clamp(max=vocab), True)[:, :vocab]
    return torch.where(flags, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return ``logits``, floats [batch, vocab], with −inf for all but the ``k`` largest of each row and their ties.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
    tensor([[-inf, 3., 2.]])
    """
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


_WHOLE = 2.0**40
"""The probability 1 as an integer: a power of two, so that scaling is exact, and 2^23 ids may each round by one."""


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return ``logits``, floats [batch, vocab], with −inf for all but the fewest likeliest ids of each row whose
    probabilities sum to at least ``p``.

    >>> keep_top_p(torch.tensor([[0.0, 9.0, 0.0]]), p=0.5)
    tensor([[-inf, 9., -inf]])
    """
    ordered, ids = logits.sort(dim=-1, descending=True)
    # Sums of integers are exact in any order. PyTorch refuses those of floats on a GPU in its deterministic mode.
    probabilities = (ordered.softmax(dim=-1) * _WHOLE).long()
    # An id stays if the ids before it sum to less than p, so that the likeliest one always stays.
    superfluous = probabilities.cumsum(dim=-1) - probabilities >= p * _WHOLE
    superfluous[:, 0] = False
    return logits.masked_fill(torch.zeros_like(superfluous).scatter(1, ids, superfluous), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Return ``logits``, floats [batch, vocab], with −inf for ids with less than ``p`` times the highest probability.

    >>> keep_min_p(torch.tensor([[0.0, 9.0, 8.0]]), p=0.1)
    tensor([[-inf, 9., 8.]])
    """
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)
