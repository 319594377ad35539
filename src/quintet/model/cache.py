"""Keys and values of the positions that a model has seen, so that the next token costs one position and not all."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one block, [batch, kv_heads, capacity, head_dim], filled from the left."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._pair: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``keys`` and ``values`` [batch, kv_heads, length, head_dim] and return all that is stored so far.

        Memory is taken with the first tokens, in their type, on their device and with their number of heads.
        """
        start, stop = self.length, self.length + keys.shape[2]
        assert stop <= self.capacity, f"a cache for {self.capacity} positions cannot hold {stop}"
        if self._pair is None:
            batch, kv_heads, _, head_dim = keys.shape
            shape = (batch, kv_heads, self.capacity, head_dim)
            self._pair = keys.new_empty(shape), values.new_empty(shape)
        for stored, new in zip(self._pair, (keys, values), strict=True):
            stored[:, :, start:stop] = new
        self.length = stop
        return self._pair[0][:, :, :stop], self._pair[1][:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Make row i of the batch what row ``rows[i]`` was; the batch may grow or shrink by it."""
        if self._pair is not None:
            self._pair = self._pair[0].index_select(0, rows), self._pair[1].index_select(0, rows)


class KVCache:
    """One ``LayerCache`` a block, for up to ``capacity`` positions."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Positions that are stored."""
        return self.layers[0].length

    def select(self, rows: Tensor | list[int]) -> None:
        """Make row i of the batch what row ``rows[i]`` was, in every block."""
        for layer in self.layers:
            layer.select(torch.as_tensor(rows))
