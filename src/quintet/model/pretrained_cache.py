"""What a model of the transformers library keeps of the texts that it has read."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from quintet.model.pretrained import PretrainedModel


class PretrainedCache:
    """The transformers library's cache of keys, values and states, and where the text of each row begins.

    ``begins`` [batch] counts the positions on the left of each row that nothing sees: padding, and documents before the
    last. Positions are counted as the model does in training, from the number after ``skipped`` where that id is one
    that it passes over.
    """

    def __init__(
        self, config: Any, capacity: int, begins: Tensor | None, *, static: bool, skipped: int | None = None
    ) -> None:
        self.static = static
        self._capacity, self._begins, self._skipped = capacity, begins, skipped
        self._length = 0
        self._last: Tensor | None = None
        self._counted: Tensor | None = None
        self.past: Any = _static_cache(config, capacity) if static else _dynamic_cache(config)

    @property
    def length(self) -> int:
        """Positions that are stored, padding included."""
        return int(self.past.get_seq_length()) if self.static else self._length

    def place(self, ids: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """Positions and visible keys of ``ids`` [batch, length], which come next, as the library's arguments.

        They are told also where nothing is hidden, as the library's own ``generate`` does: not every model counts right
        by itself.
        """
        length = ids.shape[1]
        # The library's growing cache cannot tell its length where all layers keep states and no keys.
        start = self.past.get_seq_length() if self.static else self._length
        if not self.static:  # a number that changes would make a compiled step be compiled again
            self._length += length
        index = torch.arange(length, device=ids.device) + start
        if documents is not None:
            self._begins = self._last_document(documents, index)
            self._last = documents[:, -1]
        begins = torch.zeros_like(ids[:, :1]) if self._begins is None else self._begins[:, None]
        # A static cache knows its length on the device; the mask has one shape then, whatever the length.
        keys = torch.arange(self._capacity if isinstance(start, Tensor) else start + length, device=ids.device)
        positions = (index - begins).clamp(min=0)
        if self._skipped is not None:
            positions = self._after(self._skipped, ids, index, begins)
        return {"position_ids": positions, "attention_mask": (keys >= begins).long()}

    def select(self, rows: Tensor | list[int]) -> None:
        """Make row i of the batch what row ``rows[i]`` was; the batch may grow or shrink by it if it is not static."""
        self.past.reorder_cache(torch.as_tensor(rows))
        if self._begins is not None:
            self._begins = self._begins[rows]
        if self._last is not None:
            self._last = self._last[rows]
        if self._counted is not None:
            self._counted = self._counted[rows]

    def _last_document(self, documents: Tensor, index: Tensor) -> Tensor:
        """Where the last of ``documents`` [batch, length] begins, [batch]."""
        before = documents[:, :1] - 1 if self._last is None else self._last[:, None]
        new = torch.diff(documents, dim=1, prepend=before) != 0
        stored = torch.zeros_like(documents[:, 0]) if self._begins is None else self._begins
        return torch.maximum(torch.where(new, index, 0).amax(1), stored)

    def _after(self, skipped: int, ids: Tensor, index: Tensor, begins: Tensor) -> Tensor:
        """Positions of ``ids`` where the id ``skipped`` has its own number as position and the others count on."""
        counted = (ids != skipped) & (index >= begins)
        before = (
            torch.zeros_like(ids[:, 0])
            if self._counted is None
            else torch.where(begins[:, 0] >= index[0], 0, self._counted)
        )
        numbers = before[:, None] + counted.cumsum(1)
        self._counted = numbers[:, -1]
        return torch.where(counted, skipped + numbers, skipped)


class TextCache:
    """The ids of the texts that a model has read, for models whose own cache does not serve all that is asked.

    Rows that its cache can hold side by side are read together, with a cache of theirs; where a text comes to be read
    with other positions, or its rows were exchanged in a way that the model's cache cannot follow, it is read anew.
    Without a cache that serves, all is read anew for all that is added. What it gives is what plain reading gives.
    """

    static = False

    def __init__(self, model: PretrainedModel, batch: int, capacity: int, padding: list[int] | None) -> None:
        self._model, self._capacity = model, capacity
        self._begins = list(padding or [0] * batch)
        self._ids = torch.zeros(batch, 0, dtype=torch.long, device=model.device)
        self._documents: Tensor | None = None
        self._parts: dict[Hashable, list[int]] = {}
        self._caches: dict[Hashable, PretrainedCache] = {}

    @property
    def length(self) -> int:
        """Positions that are stored, padding included."""
        return self._ids.shape[1]

    def extend(self, ids: Tensor, documents: Tensor | None) -> Tensor:
        """Add ``ids`` [batch, length] and return their features [batch, length, width]; of places before a row's last
        document they are 0."""
        before = self.length
        self._ids = torch.cat([self._ids, ids], 1)
        if documents is not None:
            self._begin_documents(documents, before)
        features = self._through_caches(before) if self._model.abilities.cache else self._anew()
        shape = (*ids.shape, features[0][1].shape[-1])
        found = features[0][1].new_zeros(shape)
        for rows, some in features:
            count = min(ids.shape[1], some.shape[1])
            found[rows, ids.shape[1] - count :] = some[:, some.shape[1] - count :].to(found.dtype)
        return found

    def select(self, rows: Tensor | list[int]) -> None:
        """Make row i of the batch what row ``rows[i]`` was; the batch may grow or shrink by it."""
        chosen = torch.as_tensor(rows, device=self._ids.device)
        self._ids = self._ids[chosen]
        self._begins = [self._begins[row] for row in chosen.tolist()]
        if self._documents is not None:
            self._documents = self._documents[chosen]
        if self._model.abilities.reorder and len(self._caches) == 1:
            (key,) = self._caches
            self._caches[key].select(chosen)
            self._parts = {key: list(range(len(chosen)))}
        else:
            self._parts, self._caches = {}, {}

    def _begin_documents(self, documents: Tensor, before: int) -> None:
        last = documents[:, :1] - 1 if self._documents is None else self._documents[:, None]
        new = torch.diff(documents, dim=1, prepend=last) != 0
        places = torch.where(new, torch.arange(documents.shape[1], device=new.device) + before, 0).amax(1)
        self._begins = [max(pair) for pair in zip(self._begins, places.tolist(), strict=True)]
        self._documents = documents[:, -1]

    def _through_caches(self, before: int) -> list[tuple[list[int], Tensor]]:
        """Rows, and the features of what was added after the first ``before`` positions, or of more."""
        can = self._model.abilities
        parts: dict[Hashable, list[int]] = {}
        for row, begin in enumerate(self._begins):
            key = (can.beyond(self.length - begin), None if can.batch else begin)
            parts.setdefault(key, []).append(row)
        if parts != self._parts:
            self._parts, self._caches = parts, {}
        found = []
        for key, rows in parts.items():
            first = min(self._begins[row] for row in rows)
            if key not in self._caches:
                padding = [self._begins[row] - first for row in rows]
                self._caches[key] = self._model.own_cache(self._capacity - first, padding if any(padding) else None)
                before = first
            found.append((rows, self._model.hidden(self._ids[rows, before:], cache=self._caches[key])))
        return found

    def _anew(self) -> list[tuple[list[int], Tensor]]:
        """Rows, and the features of all their positions, the last ones on the right."""
        together: dict[Hashable, list[int]] = {}
        for row, begin in enumerate(self._begins):
            together.setdefault(self._model.abilities.together(self.length - begin), []).append(row)
        found = []
        for rows in together.values():
            begins = torch.tensor([self._begins[row] for row in rows], device=self._ids.device)
            first = int(begins.min())
            index = torch.arange(self.length - first, device=self._ids.device)
            # The texts begin at the left, where their positions are those of training, and come back to the right.
            shift = (begins - first)[:, None]
            to_left, to_right = (index + shift) % len(index), (index - shift) % len(index)
            features = self._model.hidden(self._ids[rows, first:].gather(1, to_left))
            found.append((rows, features.take_along_dim(to_right[..., None], 1)))
        return found


def _dynamic_cache(config: Any) -> Any:
    from transformers.cache_utils import DynamicCache

    return _of_one_type(DynamicCache)(config=config)


def _static_cache(config: Any, capacity: int) -> Any:
    from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

    cache = _of_one_type(StaticCache)(config, max_cache_len=capacity)
    # A buffer of the window's length counts its tokens outside the graph, so that each would be compiled for anew. In a
    # longer one the mask hides what the window leaves.
    cache.layers = [StaticLayer(capacity) if type(one) is StaticSlidingWindowLayer else one for one in cache.layers]
    return cache


def _of_one_type(kind: Any) -> Any:
    """The library's cache ``kind``, which stores keys in the type of the values: under autocast rotary positions make
    them fp32, although attention rounds them in any case."""

    class OneType(kind):
        def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            return super().update(key_states.to(value_states.dtype), value_states, *more, **named)

    return OneType
