"""The probability that a model gives to each token of a document, and the token that it finds likeliest there."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from quintet import processes
from quintet.errors import UserError
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model import Model
from quintet.model.dropout import evaluation_mode
from quintet.model.kernels import varying_lengths
from quintet.model.mask import documents_after, leading

_LOGITS = 1 << 24  # numbers that are in memory at once
_PASS = 4096  # positions of one forward pass
_FIELDS = 3


@dataclass(frozen=True)
class Window:
    """The tokens ``start`` to ``stop`` of document number ``document``. Those from ``first`` on are predicted, each
    from all tokens before it in the window."""

    document: int
    start: int
    first: int
    stop: int

    @property
    def inputs(self) -> int:
        """Positions that the model reads: all but the last token, which is only predicted."""
        return self.stop - 1 - self.start


def windows(length: int, context: int, stride: int, document: int = 0) -> list[Window]:
    """Return windows of at most ``context`` inputs that predict each of the tokens 1 … ``length`` - 1 once.

    The first is as long as the context. Each further one adds ``stride`` tokens, which have at least ``context`` -
    ``stride`` tokens before them.
    """
    assert 1 <= stride <= context, (stride, context)
    found: list[Window] = []
    done = 1
    while done < length:
        stop = min(done + (stride if found else context), length)
        found.append(Window(document, max(0, stop - 1 - context), done, stop))
        done = stop
    return found


def batched(
    windows: Sequence[Window], tokens: int, together: Callable[[int], Hashable] = lambda length: None
) -> list[list[Window]]:
    """Return the windows in batches, the longest first. A batch has at most ``tokens`` positions with its padding, or
    one window, and ``together`` gives the same for the lengths in it."""
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: -window.inputs):
        longest = batches[-1][0].inputs if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= tokens and together(longest) == together(window.inputs):
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def deal(batches: int, rank: int, world_size: int) -> list[tuple[int, bool]]:
    """Return the batches that process ``rank`` of ``world_size`` reads, and whether each counts.

    Batch i goes to process i modulo ``world_size``. All processes read the same number, because a model that is spread
    over them needs all of them in each pass: a process that has no batch left reads its last one again (batch 0 if it
    never had one), which does not count.
    """
    dealt: list[tuple[int, bool]] = []
    last = 0
    for first in range(0, batches, world_size):
        own = first + rank < batches
        last = first + rank if own else last
        dealt.append((last, own))
    return dealt


@dataclass(frozen=True)
class TokenScores:
    """Figures of each token of a document, [tokens]: ``nats`` fp64, its negative log-probability; ``guess`` int64, the
    likeliest token in its place, -1 if the model has not read it; ``confidence`` fp64, the probability of ``guess``."""

    nats: np.ndarray
    guess: np.ndarray
    confidence: np.ndarray


def token_scores(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], stride: int | None = None
) -> list[TokenScores]:
    """Return the scores of all tokens of each of ``documents``, int [tokens] without begin and end ids.

    A document is read after the ids that the model was trained to see before one (`TextBounds`). If there are none, the
    first token costs log(vocabulary), as by chance. A document longer than the context is read in `windows`. Each of
    several processes reads a part, and all return the same. Raises UserError if the stride is longer than the context.
    """
    model = language_model.model
    context = model.context_length
    step = stride or max(1, context // 2)
    if step > context:
        raise UserError(f"evaluate.text_modeling.stride: {step} tokens are more than the model's context of {context}")
    prefix = list(language_model.bounds.before)
    whole = [np.concatenate([np.array(prefix, dtype=np.int64), np.asarray(ids, dtype=np.int64)]) for ids in documents]
    parts = [window for index, ids in enumerate(whole) for window in windows(len(ids), context, step, index)]
    tables = [np.full((_FIELDS, len(ids)), np.nan) for ids in whole]
    batches = batched(parts, max(_PASS, context), model.abilities.together)
    for window, values in _read(language_model, whole, batches, language_model.bounds.preceding):
        tables[window.document][:, window.first : window.stop] = values
    if not prefix:
        chance = language_model.tokenizer.vocab_size
        for table in tables:
            table[:, :1] = [[math.log(chance)], [-1], [1 / chance]]
    begin = len(prefix)
    return [TokenScores(table[0, begin:], table[1, begin:].astype(np.int64), table[2, begin:]) for table in tables]


def _read(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], batches: list[list[Window]], preceding: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield each window with the fields of its predicted tokens, fp64 [fields, tokens]; processes share the batches."""
    computed: dict[int, list[np.ndarray]] = {}
    with evaluation_mode(language_model.model):
        for number, counts in deal(len(batches), processes.rank(), processes.world_size()):
            values = _scores(language_model, documents, batches[number], preceding)
            if counts:
                computed[number] = values
    for part in cast(list[dict[int, list[np.ndarray]]], processes.all_gather(computed)):
        for number, values in part.items():
            yield from zip(batches[number], values, strict=True)


@torch.no_grad()
def _scores(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], batch: list[Window], preceding: int
) -> list[np.ndarray]:
    """Return the fields of the predicted tokens of each window, fp64 [fields, tokens], from one forward pass.

    The first ``preceding`` ids of each of ``documents`` are the end of the document before.
    """
    model, device = language_model.model, language_model.compute.device
    ids = np.zeros((len(batch), max(window.inputs for window in batch)), dtype=np.int64)
    targets: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    for row, window in enumerate(batch):
        ids[row, : window.inputs] = documents[window.document][window.start : window.stop - 1]
        targets.append(documents[window.document][window.first : window.stop])
        rows.append(np.full(window.stop - window.first, row))
        columns.append(np.arange(window.first, window.stop) - 1 - window.start)
    inputs = torch.tensor(ids, device=device)
    numbers = None
    if model.config.tells_documents:
        left = torch.tensor([max(0, preceding - window.start) for window in batch], device=device)
        numbers = documents_after(left, inputs.shape[1])
    # If a prompt sees itself in both directions, the tokens before the first predicted one are the prompt.
    known = torch.tensor([window.first - window.start for window in batch], device=device)
    prompts = leading(known, inputs.shape[1])
    with varying_lengths(), language_model.compute.autocast():
        hidden = model.hidden(inputs, documents=numbers, prompts=prompts)
        picked = hidden[_index(rows, device), _index(columns, device)]
        fields = token_fields(model, picked, _index(targets, device))
    return np.split(fields, np.cumsum([len(part) for part in targets])[:-1], axis=1)


def token_fields(model: Model, hidden: Tensor, targets: Tensor) -> np.ndarray:
    """Return nats, guess and confidence of ``targets``, int64 [tokens], after ``hidden``, [tokens, width] of any dtype:
    fp64 [fields, tokens]."""
    size = max(1, _LOGITS // model.vocab_size)
    parts = [np.zeros((_FIELDS, 0))]
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        log_probabilities = model.logits(hidden[part]).float().log_softmax(-1)
        nats = -log_probabilities.gather(1, targets[part, None])[:, 0]
        best, guess = log_probabilities.max(-1)
        # fp32 holds ids below 2²⁴; MPS has no fp64.
        fields = torch.stack([nats, guess.float(), best]).cpu().double().numpy()
        parts.append(np.stack([fields[0], fields[1], np.exp(fields[2])]))
    return np.concatenate(parts, axis=1)


def _index(parts: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.tensor(np.concatenate(parts), device=device)
