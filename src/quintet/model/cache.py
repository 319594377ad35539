"""The ways in which a model can read texts, and the cache of keys and values."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quintet.model.typed import keep_address


@dataclass(frozen=True)
class Abilities:
    """The ways of reading that give the same result as one pass over one whole text.

    ``cache``: token by token, with a cache of the text before. ``batch``: so in rows, with padding on the left of
    shorter ones. ``static``: so with a cache of one shape. ``reorder``: after rows of the cache were exchanged or
    repeated. ``shared``: several tokens at once after a prefix that was read once for several rows. ``filled``: whole
    rows, with padding on the right of shorter ones. ``documents``: several texts in one row, separated by their
    positions. ``causal``: no token sees a later one.

    ``boundary`` is the length of the longest text, in tokens, that is read with the first set of positions, if a model
    has another set for longer ones; the other fields then hold for texts on the same side of it. ``positions`` is how
    the model counts if it is given no positions: from zero; from the number after its padding id, skipping that id; or
    in a way of its own, so that it must not be given any.
    """

    cache: bool = True
    batch: bool = True
    static: bool = True
    reorder: bool = True
    shared: bool = True
    filled: bool = True
    documents: bool = True
    causal: bool = True
    boundary: int | None = None
    positions: Literal["from zero", "after padding id", "own"] = "from zero"

    def together(self, length: int) -> Hashable:
        """Return a key that is equal for texts that can be read in one pass, with padding on the right.

        >>> Abilities(filled=False).together(5)
        5
        """
        return self.beyond(length) if self.filled else length

    def beyond(self, length: int) -> bool:
        """Return True if a text of ``length`` tokens is read with the second set of positions."""
        return self.boundary is not None and length > self.boundary

    def slower(self) -> list[str]:
        """Return a line for each task that the model does in a slower way than others in order to be right."""
        lines: list[str] = []
        if not self.cache:
            lines.append("reads all of a text anew for each token that it writes, for its cache gives other logits")
        elif not self.batch:
            lines.append("reads texts of different lengths apart, for padding changes their logits")
        if self.cache and not self.reorder:
            lines.append("reads all beams anew for each token, for the rows of its cache cannot be exchanged")
        if not self.static:
            lines.append("has no cache of one shape (--static-cache)")
        if self.boundary is not None:
            lines.append(
                f"has other positions for texts of more than {self.boundary:,} tokens, so that a text which grows "
                "beyond that is read anew there, and shorter and longer texts are read apart"
            )
        elif not self.shared:
            lines.append("reads the question of a benchmark anew for each of its answers")
        return lines


class LayerCache:
    """Keys and values of one block, floats [batch, kv_heads, capacity, head_dim], filled from the left."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._pair: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``keys`` and ``values`` [batch, kv_heads, length, head_dim] and return all stored ones, or the whole
        buffers if they are static.

        Buffers are allocated with the first tokens, in their dtype, on their device and with their number of heads.
        """
        start, length = self._cache.start, keys.shape[2]
        stop = self._cache.keys_after(length)
        if self._pair is None:
            batch, kv_heads, _, head_dim = keys.shape
            shape = (batch, kv_heads, self._cache.capacity, head_dim)
            # Zeros and not NaN, because attention multiplies the unused end of a static buffer by zero.
            self._pair = keys.new_zeros(shape), values.new_zeros(shape)
            if self._cache.static:
                keep_address(*self._pair)
        for stored, new in zip(self._pair, (keys, values), strict=True):
            if isinstance(start, Tensor):
                stored.index_copy_(2, start + torch.arange(length, device=keys.device), new)
            else:
                stored[:, :, start:stop] = new
        return self._pair[0][:, :, :stop], self._pair[1][:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Replace row i of the batch by the former row ``rows[i]``, int64 [new batch]; the batch size may change."""
        if self._pair is not None:
            self._pair = self._pair[0].index_select(0, rows), self._pair[1].index_select(0, rows)


class KVCache:
    """One ``LayerCache`` per block, for up to ``capacity`` positions.

    ``padding``, int64 [batch], counts the positions on the left of each row that hold no token. A ``static`` cache has
    tensors of one shape from the first token to the last, and keeps its length on the device, so that one compiled step
    serves all tokens.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        *,
        padding: Tensor | None = None,
        static: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity, self.static, self.padding = capacity, static, padding
        self._length = 0
        self._position = torch.zeros((), dtype=torch.long, device=device) if static else None
        if self._position is not None:
            keep_address(self._position)
        self._document: tuple[Tensor, Tensor] | None = None
        self.layers = [LayerCache(self) for _ in range(layers)]

    @property
    def length(self) -> int:
        """The number of stored positions, padding included."""
        return self._length if self._position is None else int(self._position)

    @property
    def start(self) -> int | Tensor:
        """The index of the next token; an int64 scalar on the device if the cache is static."""
        return self._length if self._position is None else self._position

    def keys_after(self, length: int) -> int:
        """Return the number of keys that attention reads when ``length`` more tokens are stored."""
        if self._position is not None:
            return self.capacity
        stop = self._length + length
        assert stop <= self.capacity, f"a cache for {self.capacity} positions cannot hold {stop}"
        return stop

    def advance(self, length: int) -> None:
        """Count ``length`` tokens as stored, after each block has stored them."""
        if self._position is None:
            self._length += length
        else:
            self._position += length

    def document_begin(self, documents: Tensor, fresh: Tensor) -> Tensor:
        """Return the first index of the documents of the next tokens: that of the last document if it continues,
        otherwise ``fresh``. All are int64 [batch]."""
        if self._document is None:
            return fresh
        last, begin = self._document
        return torch.where(documents == last, begin, fresh)

    def remember_document(self, documents: Tensor, begins: Tensor) -> None:
        """Store the number and the first index of each row's last document, both int64 [batch]."""
        self._document = documents, begins

    def select(self, rows: Tensor | list[int]) -> None:
        """Replace row i of the batch by the former row ``rows[i]``, int64 [new batch], in each block."""
        for layer in self.layers:
            layer.select(torch.as_tensor(rows))
        if self.padding is not None:
            self.padding = self.padding[rows]
        if self._document is not None:
            self._document = self._document[0][rows], self._document[1][rows]
