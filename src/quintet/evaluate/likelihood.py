"""The probability that a model gives to each token of a document, and the token that it would have written."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quintet import processes
from quintet.errors import UserError
from quintet.evaluate.harness.batches import deal
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model import Model
from quintet.model.dropout import evaluation_mode
from quintet.model.kernels import varying_lengths
from quintet.model.mask import documents_after, leading


@dataclass(frozen=True)
class Window:
    """The tokens ``start`` to ``stop`` of document number ``document``: those from ``first`` on are predicted here,
    each from all that stand before it in the window."""

    document: int
    start: int
    first: int
    stop: int

    @property
    def inputs(self) -> int:
        """Positions that the model reads: the last token is only predicted."""
        return self.stop - 1 - self.start


def windows(length: int, context: int, stride: int, document: int = 0) -> list[Window]:
    """Windows of at most ``context`` inputs that predict each of the tokens 1 … ``length`` - 1 once.

    The first is as long as the context, and each further one adds ``stride`` tokens, which so have at least
    ``context`` - ``stride`` others before them.
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
    found: Sequence[Window], tokens: int, together: Callable[[int], Hashable] = lambda length: None
) -> list[list[Window]]:
    """The windows, the longest first, in batches that have at most ``tokens`` positions with their padding, or are one
    window alone; ``together`` gives the lengths of a batch the same."""
    batches: list[list[Window]] = []
    for window in sorted(found, key=lambda one: -one.inputs):
        longest = batches[-1][0].inputs if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= tokens and together(longest) == together(window.inputs):
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


_LOGITS = 1 << 24  # numbers that are in memory at once
_PASS = 4096  # positions of one forward pass
_FIELDS = 3


@dataclass(frozen=True)
class TokenScores:
    """Figures of each token of a document, [tokens]: ``nats`` fp64, its negative log-probability; ``guess`` int64, the
    likeliest token in its place, -1 where there was none to choose; ``confidence`` fp64, the probability of that."""

    nats: np.ndarray
    guess: np.ndarray
    confidence: np.ndarray


def token_scores(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], stride: int | None = None
) -> list[TokenScores]:
    """The scores of all tokens of each of ``documents``, int [tokens] without begin and end ids.

    A document is read after what its model has learnt to see before one (`TextBounds`). Where that is nothing the first
    token costs what it would by chance, log(vocabulary). What is longer than the
    context is read in windows (see `windows`). With several processes each reads a part, and all return the same.
    Raises UserError where the stride is longer than the model's context.
    """
    model = language_model.model
    context = model.context_length
    step = stride or max(1, context // 2)
    if step > context:
        raise UserError(f"evaluate.text_modeling.stride: {step} tokens are more than the model's context of {context}")
    prefix = list(language_model.bounds.before)
    whole = [np.concatenate([np.array(prefix, dtype=np.int64), np.asarray(ids, dtype=np.int64)]) for ids in documents]
    found = [window for index, ids in enumerate(whole) for window in windows(len(ids), context, step, index)]
    table = [np.full((_FIELDS, len(ids)), np.nan) for ids in whole]
    batches = batched(found, max(_PASS, context), model.abilities.together)
    for window, values in _read(language_model, whole, batches, language_model.bounds.preceding):
        table[window.document][:, window.first : window.stop] = values
    if not prefix:
        chance = language_model.tokenizer.vocab_size
        for one in table:
            one[:, :1] = [[math.log(chance)], [-1], [1 / chance]]
    begin = len(prefix)
    return [TokenScores(one[0, begin:], one[1, begin:].astype(np.int64), one[2, begin:]) for one in table]


def _read(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], batches: list[list[Window]], preceding: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with the fields of its predicted tokens, fp64 [fields, tokens]; processes share the batches."""
    computed: dict[int, list[np.ndarray]] = {}
    with evaluation_mode(language_model.model):
        for number, counts in deal(len(batches), processes.rank(), processes.world_size()):
            values = _scores(language_model, documents, batches[number], preceding)
            if counts:
                computed[number] = values
    for part in processes.all_gather(computed):
        for number, values in part.items():
            yield from zip(batches[number], values, strict=True)


@torch.no_grad()
def _scores(
    language_model: ModelAndTokenizer, documents: Sequence[np.ndarray], batch: list[Window], preceding: int
) -> list[np.ndarray]:
    """The fields of the predicted tokens of each window, fp64 [fields, tokens], from one forward pass.

    The first ``preceding`` ids of each of ``documents`` are the end of the document before.
    """
    model, device = language_model.model, language_model.compute.device
    ids = np.zeros((len(batch), max(one.inputs for one in batch)), dtype=np.int64)
    targets, rows, columns = [], [], []
    for row, one in enumerate(batch):
        ids[row, : one.inputs] = documents[one.document][one.start : one.stop - 1]
        targets.append(documents[one.document][one.first : one.stop])
        rows.append(np.full(one.stop - one.first, row))
        columns.append(np.arange(one.first, one.stop) - 1 - one.start)
    inputs = torch.from_numpy(ids).to(device)
    numbers = None
    if model.config.tells_documents:
        left = torch.tensor([max(0, preceding - one.start) for one in batch], device=device)
        numbers = documents_after(left, inputs.shape[1])
    # For a mask that lets a prompt see itself backwards, what stands before the first predicted token is the prompt.
    known = torch.tensor([one.first - one.start for one in batch], device=device)
    prompts = leading(known, inputs.shape[1])
    with varying_lengths(), language_model.compute.autocast():
        hidden = model.hidden(inputs, documents=numbers, prompts=prompts)
        picked = hidden[_index(rows, device), _index(columns, device)]
        fields = token_fields(model, picked, _index(targets, device))
    return np.split(fields, np.cumsum([len(one) for one in targets])[:-1], axis=1)


def token_fields(model: Model, hidden: Tensor, targets: Tensor) -> np.ndarray:
    """Nats, guess and confidence of ``targets``, int64 [tokens], after ``hidden``, [tokens, width].

    Returns fp64 [fields, tokens], whatever the dtype of ``hidden``.
    """
    size = max(1, _LOGITS // model.vocab_size)
    found = [np.zeros((_FIELDS, 0))]
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        log_probabilities = model.logits(hidden[part]).float().log_softmax(-1)
        nats = -log_probabilities.gather(1, targets[part, None])[:, 0]
        best, guess = log_probabilities.max(-1)
        # fp32 holds ids below 2²⁴; MPS has no fp64.
        fields = torch.stack([nats, guess.float(), best]).cpu().double().numpy()
        found.append(np.stack([fields[0], fields[1], np.exp(fields[2])]))
    return np.concatenate(found, axis=1)


def _index(parts: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)
