"""Masks: the keys that each query sees.

Each mask is a range of keys for each query, from ``first`` to ``last``. With causal attention the range ends at the
query itself; a window starts some positions before it; a document's range starts and ends with the document; a
prompt's ends with the prompt; padding on the left moves the start. Two numbers per query replace a matrix: keys outside
the range of a whole block of queries need not be computed, and a dense mask, or a block mask for FlexAttention, is
made from the ranges if a kernel needs one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.config.model import DOCUMENT_MASKS, AttentionConfig
from quintet.model.cache import KVCache


@dataclass(frozen=True)
class KeyRanges:
    """The range of ``keys`` keys that each of ``length`` queries sees; the queries are at the last positions of the
    keys.

    ``first`` and ``last`` are int64 [batch or 1, length], both inclusive. Without ``first`` a query sees the keys from
    the first on; without ``last`` it sees them up to itself if ``causal``, otherwise to the end.
    """

    length: int
    keys: int
    causal: bool
    first: Tensor | None = None
    last: Tensor | None = None

    @property
    def simple(self) -> bool:
        """True if these ranges are the plain causal mask, or hide nothing."""
        aligned = self.length == self.keys or self.length == 1 or not self.causal
        return self.first is None and self.last is None and aligned

    def dense(self, device: torch.device) -> Tensor:
        """Return a mask, True where a query sees a key: bool [batch or 1, 1, length, keys].

        >>> KeyRanges(length=2, keys=2, causal=True).dense(torch.device("cpu")).long()
        tensor([[[[1, 0],
                  [1, 1]]]])
        """
        keys = torch.arange(self.keys, device=device)
        last = self.last
        if last is None and self.causal:
            last = torch.arange(self.keys - self.length, self.keys, device=device)[None]
        seen = torch.ones(1, self.length, self.keys, dtype=torch.bool, device=device)
        if self.first is not None:
            seen = seen & (keys >= self.first[..., None])
        if last is not None:
            seen = seen & (keys <= last[..., None])
        return seen[:, None]


@dataclass(frozen=True)
class Layout:
    """The ``positions`` of the tokens of one forward pass, int64 [length] or [batch, length], and the keys that each
    sees."""

    positions: Tensor
    ranges: KeyRanges


def leading(counts: Tensor, length: int, padding: Tensor | int = 0) -> Tensor:
    """Mark the first ``counts`` tokens of each row after ``padding`` ones: bool [batch, length].

    ``counts`` and ``padding`` are int64 [batch].

    >>> leading(torch.tensor([1, 2]), length=3).long()
    tensor([[1, 0, 0],
            [1, 1, 0]])
    """
    index = torch.arange(length, device=counts.device)
    begins = torch.as_tensor(padding, device=counts.device) + torch.zeros_like(counts)
    return (index >= begins[:, None]) & (index < (begins + counts)[:, None])


def documents_after(preceding: Tensor, length: int, padding: Tensor | int = 0) -> Tensor:
    """Return document numbers of texts that follow the end of another document: int64 [batch, length].

    After ``padding`` tokens (-1), the first ``preceding`` tokens of each row belong to the document before (0), and the
    others to the text's own (1). ``preceding`` and ``padding`` are int64 [batch].
    """
    index = torch.arange(length, device=preceding.device)
    begins = torch.as_tensor(padding, device=preceding.device) + torch.stack([torch.zeros_like(preceding), preceding])
    return (index >= begins[..., None]).long().sum(0) - 1


def lay_out(
    config: AttentionConfig,
    ids: Tensor,
    documents: Tensor | None = None,
    prompts: Tensor | None = None,
    cache: KVCache | None = None,
) -> Layout:
    """Return positions and visible keys of int64 ``ids`` [batch, length], which continue the texts in ``cache``.

    ``documents``, int64 [batch, length], numbers the documents, for masks that separate them. ``prompts``, bool [batch,
    length], is True for tokens of the prompt at the start of their document, for the prefix mask: tokens of one prompt
    see one another in both directions.
    """
    length, device = ids.shape[1], ids.device
    start = 0 if cache is None else cache.start
    padding = None if cache is None else cache.padding
    index = torch.arange(length, device=device) + start
    causal, positions = config.kind == "causal", index
    firsts: list[Tensor] = []
    last: Tensor | None = None
    if padding is not None:
        firsts.append(padding[:, None])
        positions = (index - padding[:, None]).clamp_(min=0)
    if config.mask in DOCUMENT_MASKS and documents is not None:
        begins = _begins(documents, index, cache)
        firsts.append(begins)
        if config.restart_positions:
            positions = index - begins
        if not causal:
            last = _ends(documents, index)
    if config.window is not None:
        firsts.append((index - config.window + 1).clamp(min=0)[None])
        if not causal:
            reach = (index + config.window - 1).clamp(max=length - 1)[None]
            last = reach if last is None else torch.minimum(last, reach)
    if config.mask == "prefix" and prompts is not None:
        runs = torch.where(prompts, documents if documents is not None else 0, -1 - torch.arange(length, device=device))
        last = _ends(runs, index)
    first: Tensor | None = None
    for bound in firsts:
        first = bound if first is None else torch.maximum(first, bound)
    if first is not None:
        first = torch.minimum(first, index)  # padding sees itself, because softmax needs at least one key
        if first.shape[1] != length:
            first = first.expand(-1, length)
    keys = length if cache is None else cache.keys_after(length)
    if cache is not None and cache.static and last is None:
        last = index[None]  # the rest of the buffer is unused
    return Layout(positions, KeyRanges(length, keys, causal, first, last))


def _begins(documents: Tensor, index: Tensor, cache: KVCache | None) -> Tensor:
    """Return the first index of each token's document: int64 [batch, length], like ``documents``; ``index`` is
    [length]."""
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins = torch.where(new, index, 0)
    if cache is not None:
        begins[:, 0] = cache.document_begin(documents[:, 0], begins[:, 0])
    begins = begins.cummax(1).values
    if cache is not None:
        cache.remember_document(documents[:, -1], begins[:, -1])
    return begins


def _ends(documents: Tensor, index: Tensor) -> Tensor:
    """Return the last index of each token's document: int64 [batch, length], like ``documents``; ``index`` is
    [length]."""
    closing = torch.ones_like(documents, dtype=torch.bool)
    closing[:, :-1] = documents[:, 1:] != documents[:, :-1]
    ends = torch.where(closing, index, index[-1])
    return ends.flip(1).cummin(1).values.flip(1)
