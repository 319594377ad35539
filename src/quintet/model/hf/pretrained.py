"""A model of the transformers library with the interface of our own transformer, and its caches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError
from quintet.model.cache import Abilities
from quintet.model.typed import as_list


class PretrainedModel(nn.Module):
    """A causal language model of the transformers library, for text only.

    ``inner`` is the library's model, or peft's model around it if adapters are trained. ``linear_head`` is True if the
    logits are only a product of the backbone's features with a matrix, so that a loss need not hold all of them in
    memory. Otherwise (a soft cap, a scale, an adapter in the head) ``hidden`` returns the logits. ``notes`` are lines
    for the user on what of the checkpoint is unused, where it is wrong, and what the model does in a slower way.
    ``abilities`` are the ways of reading that give the same result as plain reading.
    """

    def __init__(
        self,
        config: HuggingFaceConfig,
        inner: Any,
        vocab_size: int,
        context_length: int,
        *,
        linear_head: bool,
        abilities: Abilities,
    ) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.notes: list[str] = []
        self.linear_head, self.abilities = linear_head, abilities
        self.inner = inner

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return logits [batch, length, vocab] of the token after each of int64 ``ids`` [batch, length]; see
        ``hidden``."""
        return self.logits(self.hidden(ids, documents=documents, prompts=prompts))

    def hidden(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        prompts: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return the input of ``logits``, [batch, length, width or rows], for int64 ``ids`` [batch, length].

        Its dtype is that of the weights, or autocast's. ``documents``, int64 [batch, length], is the number of each
        token's document; a token sees only its document and counts its position from the document's start. ``prompts``
        is ignored, because these models are causal. With ``cache``, from ``start_cache``, ``ids`` continue the stored
        positions; then only the features of each row's last document are valid, because earlier documents are masked
        like padding. Raises UserError for training with FlexAttention on a CPU, which PyTorch does not support.
        """
        if isinstance(cache, TextCache):
            return cache.extend(ids, documents)
        if cache is not None:
            return self._read(ids, **{self._cache_name: cache.past}, **cache.next_arguments(ids, documents))
        if documents is None:
            return self._read(ids)
        positions = self.positions(ids, documents)
        if "flash" in self._attention:
            # FlashAttention finds documents by restarting positions, and only in a batch of one row.
            features = self._read(ids.reshape(1, -1), position_ids=positions.reshape(1, -1))
            return features.view(*ids.shape, -1)
        return self._read(ids, position_ids=positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map ``hidden`` [..., width or rows] to logits [..., vocab], in its dtype or autocast's, without the rows
        beyond the tokenizer's ids."""
        logits = self._head(hidden) if self.linear_head else hidden
        return logits[..., : self.vocab_size]

    def start_cache(
        self, batch: int, capacity: int, *, padding: list[int] | None = None, static: bool = False
    ) -> Any:  # a PretrainedCache or TextCache, which a Decoder passes to the same model again
        """Return an empty cache for ``batch`` texts of up to ``capacity`` positions; the first ``padding[i]`` positions
        of row i hold no token. With ``static`` its tensors have one shape, if the model can use such a cache. Reading
        with the cache gives the features of plain reading."""
        assert padding is None or len(padding) == batch
        can = self.abilities
        side_by_side = can.batch or not (padding or self.config.tells_documents)
        if can.cache and can.reorder and side_by_side and not can.beyond(capacity):
            return self.own_cache(capacity, padding, static=static and can.static)
        return TextCache(self, batch, capacity, padding)

    def own_cache(self, capacity: int, padding: list[int] | None = None, *, static: bool = False) -> PretrainedCache:
        """Return the library's cache, whatever the abilities of the model."""
        begins = None if padding is None else torch.tensor(padding, device=self.device)
        return PretrainedCache(self.causal.config, capacity, begins, static=static, skipped=self._skipped)

    def positions(self, ids: Tensor, documents: Tensor) -> Tensor:
        """Return the positions of ``ids`` in ``documents``, all int64 [batch, length], as the model counts them in a
        text."""
        positions = document_positions(documents)
        if self._skipped is None:
            return positions
        counted = (ids != self._skipped).long()
        numbers = counted.cumsum(1)
        begins = torch.arange(ids.shape[1], device=ids.device) - positions
        numbers = numbers - (numbers - counted).gather(1, begins)
        return self._skipped + numbers * counted

    def merged(self) -> Any:
        """Return a copy of the library's model (``transformers.PreTrainedModel``) in fp32, with adapters merged into
        its weights."""
        inner = copy.deepcopy(self.inner)
        return inner if self.config.lora is None else inner.merge_and_unload()

    @property
    def causal(self) -> Any:
        """The library's model, without peft's wrapper."""
        return self.inner if self.config.lora is None else self.inner.get_base_model()

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, or the backbone as a whole if they cannot be found."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [m for m in self.causal.modules() if isinstance(m, GradientCheckpointingLayer)] or [self._reader]

    @property
    def head_weight(self) -> Tensor | None:
        """The head's matrix, floats [rows, width]; None if the logits are more than a product with it."""
        return self._head.weight if self.linear_head else None

    @property
    def head_bias(self) -> Tensor | None:
        """The head's bias, floats [rows], or None."""
        return self._head.bias if self.linear_head else None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.causal.device

    @property
    def _head(self) -> nn.Linear:
        return self.causal.get_output_embeddings()

    @property
    def _reader(self) -> nn.Module:
        return self.causal.base_model if self.linear_head else self.causal

    @cached_property
    def _takes(self) -> frozenset[str]:
        return arguments(self._reader, self.causal)

    @cached_property
    def _cache_name(self) -> str:
        return "cache_params" if "cache_params" in self._takes else "past_key_values"

    @property
    def _skipped(self) -> int | None:
        """The id that has no position of its own, or None."""
        if self.abilities.positions != "after padding id":
            return None
        return padding_id(self.causal)

    @property
    def _attention(self) -> str:
        return self.causal.config._attn_implementation

    def _read(self, ids: Tensor, **more: Any) -> Tensor:
        """Return features, or logits without a ``linear_head``, of int64 ``ids`` [batch, length]."""
        if ids.device.type == "cpu" and torch.is_grad_enabled() and self._attention == "flex_attention":
            raise UserError("model.attention_backend: flex_attention cannot train on a CPU; leave it out")
        more["use_cache"] = self._cache_name in more
        if self.abilities.positions == "own":
            more.pop("position_ids", None)
        known = {name: value for name, value in more.items() if name in self._takes}
        output = self._reader(input_ids=ids, **known)
        return output.last_hidden_state if self.linear_head else output.logits


def arguments(reader: nn.Module, causal: nn.Module) -> frozenset[str]:
    """Return the arguments of ``reader``, which is ``causal`` or a part of it; those of ``causal`` if ``reader`` only
    passes its arguments on."""
    own, outer = (frozenset(inspect.signature(module.forward).parameters) for module in (reader, causal))
    return own if "input_ids" in own else outer


def padding_id(causal: Any) -> int | None:
    """Return the padding id in the configuration of ``causal``, or None."""
    return getattr(causal.config.get_text_config(decoder=True), "pad_token_id", None)


def document_positions(documents: Tensor) -> Tensor:
    """Return the position of each token in its document: int64 [batch, length], like ``documents``.

    >>> document_positions(torch.tensor([[0, 0, 0, 1, 1]]))
    tensor([[0, 1, 2, 0, 1]])
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    new = torch.diff(documents, dim=1, prepend=documents[:, :1]) != 0
    return index - torch.where(new, index, 0).cummax(1).values


class PretrainedCache:
    """The transformers library's cache of keys, values and states, and the start of each row's text.

    ``begins``, int64 [batch], counts the masked positions on the left of each row: padding, and documents before the
    last. Positions are counted as the model does in training: from the number after ``skipped`` if the model skips that
    id.
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
        """The number of stored positions, padding included."""
        return int(self.past.get_seq_length()) if self.static else self._length

    def next_arguments(self, ids: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """Return positions [batch, length] and visible keys [batch, stored] of the next ``ids`` [batch, length], all
        int64, as the library's arguments.

        They are passed even if nothing is masked, as the library's own ``generate`` does, because not every model
        counts right by itself.
        """
        length = ids.shape[1]
        # The library's growing cache does not know its length if all layers store states and no keys.
        start = self.past.get_seq_length() if self.static else self._length
        if not self.static:  # a compiled step would be recompiled for each new number
            self._length += length
        index = torch.arange(length, device=ids.device) + start
        if documents is not None:
            self._begins = self._last_document(documents, index)
            self._last = documents[:, -1]
        begins = torch.zeros_like(ids[:, :1]) if self._begins is None else self._begins[:, None]
        # A static cache has its length on the device; its mask has one shape at any length.
        keys = torch.arange(self._capacity if isinstance(start, Tensor) else start + length, device=ids.device)
        positions = (index - begins).clamp(min=0)
        if self._skipped is not None:
            positions = self._after(self._skipped, ids, index, begins)
        return {"position_ids": positions, "attention_mask": (keys >= begins).long()}

    def select(self, rows: Tensor | list[int]) -> None:
        """Replace row i of the batch by the former row ``rows[i]``, int64 [new batch].

        The batch size may change if the cache is not static.
        """
        self.past.reorder_cache(torch.as_tensor(rows))
        if self._begins is not None:
            self._begins = self._begins[rows]
        if self._last is not None:
            self._last = self._last[rows]
        if self._counted is not None:
            self._counted = self._counted[rows]

    def _last_document(self, documents: Tensor, index: Tensor) -> Tensor:
        """Return the first index of the last of ``documents`` [batch, length], int64 [batch]."""
        before = documents[:, :1] - 1 if self._last is None else self._last[:, None]
        new = torch.diff(documents, dim=1, prepend=before) != 0
        stored = torch.zeros_like(documents[:, 0]) if self._begins is None else self._begins
        return torch.maximum(torch.where(new, index, 0).amax(1), stored)

    def _after(self, skipped: int, ids: Tensor, index: Tensor, begins: Tensor) -> Tensor:
        """Return positions, int64 [batch, length], of ``ids``: ``skipped`` for that id, ascending ones for the others.

        ``index`` [length] are the indices of ``ids`` in their rows, ``begins`` [batch, 1] the starts of the rows'
        texts.
        """
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
    """The ids of the texts that a model has read, for models whose own cache lacks an ability.

    Rows that the model's cache can hold side by side are read together, with a cache of their own. A text is read again
    if its positions change or its rows are exchanged in a way that this cache does not support. Without a usable cache
    each extension reads the whole texts again. The features are those of plain reading.
    """

    static = False

    def __init__(self, model: PretrainedModel, batch: int, capacity: int, padding: list[int] | None) -> None:
        self._model, self._capacity = model, capacity
        self._begins: list[int] = list(padding or [0] * batch)
        self._ids = torch.zeros(batch, 0, dtype=torch.long, device=model.device)
        self._documents: Tensor | None = None
        self._parts: dict[Hashable, list[int]] = {}
        self._caches: dict[Hashable, PretrainedCache] = {}

    @property
    def length(self) -> int:
        """The number of stored positions, padding included."""
        return self._ids.shape[1]

    def extend(self, ids: Tensor, documents: Tensor | None) -> Tensor:
        """Append ``ids`` in ``documents``, both int64 [batch, length], and return their features [batch, length, width]
        in the model's dtype; those of tokens before a row's last document are 0."""
        before = self.length
        self._ids = torch.cat([self._ids, ids], 1)
        if documents is not None:
            self._begin_documents(documents, before)
        features = self._read_with_caches(before) if self._model.abilities.cache else self._read_again()
        shape = (*ids.shape, features[0][1].shape[-1])
        result = features[0][1].new_zeros(shape)
        for rows, part in features:
            count = min(ids.shape[1], part.shape[1])
            result[rows, ids.shape[1] - count :] = part[:, part.shape[1] - count :].to(result.dtype)
        return result

    def select(self, rows: Tensor | list[int]) -> None:
        """Replace row i of the batch by the former row ``rows[i]``, int64 [new batch]; the batch size may change."""
        chosen = torch.as_tensor(rows, device=self._ids.device)
        self._ids = self._ids[chosen]
        self._begins = [self._begins[row] for row in as_list(chosen)]
        if self._documents is not None:
            self._documents = self._documents[chosen]
        if self._model.abilities.reorder and len(self._caches) == 1:
            (key,) = self._caches
            self._caches[key].select(chosen)
            self._parts = {key: list(range(len(chosen)))}
        else:
            self._parts, self._caches = {}, {}

    def _begin_documents(self, documents: Tensor, before: int) -> None:
        """Store the start of the last of ``documents``, int64 [batch, length], after ``before`` positions."""
        last = documents[:, :1] - 1 if self._documents is None else self._documents[:, None]
        new = torch.diff(documents, dim=1, prepend=last) != 0
        starts = torch.where(new, torch.arange(documents.shape[1], device=new.device) + before, 0).amax(1)
        self._begins = [max(pair) for pair in zip(self._begins, as_list(starts), strict=True)]
        self._documents = documents[:, -1]

    def _read_with_caches(self, before: int) -> list[tuple[list[int], Tensor]]:
        """Return rows with their features, floats [rows, length, width], after ``before`` positions or earlier ones."""
        can = self._model.abilities
        parts: dict[Hashable, list[int]] = {}
        for row, begin in enumerate(self._begins):
            key = (can.beyond(self.length - begin), None if can.batch else begin)
            parts.setdefault(key, []).append(row)
        if parts != self._parts:
            self._parts, self._caches = parts, {}
        results: list[tuple[list[int], Tensor]] = []
        for key, rows in parts.items():
            first = min(self._begins[row] for row in rows)
            if key not in self._caches:
                padding = [self._begins[row] - first for row in rows]
                self._caches[key] = self._model.own_cache(self._capacity - first, padding if any(padding) else None)
                before = first
            results.append((rows, self._model.hidden(self._ids[rows, before:], cache=self._caches[key])))
        return results

    def _read_again(self) -> list[tuple[list[int], Tensor]]:
        """Return rows with the features, floats [rows, length, width], of all their positions, aligned on the right."""
        together: dict[Hashable, list[int]] = {}
        for row, begin in enumerate(self._begins):
            together.setdefault(self._model.abilities.together(self.length - begin), []).append(row)
        results: list[tuple[list[int], Tensor]] = []
        for rows in together.values():
            begins = torch.tensor([self._begins[row] for row in rows], device=self._ids.device)
            first = int(begins.min())
            index = torch.arange(self.length - first, device=self._ids.device)
            # Texts move to the left, so that they have the positions of training; their features move back.
            shift = (begins - first)[:, None]
            to_left, to_right = (index + shift) % len(index), (index - shift) % len(index)
            features = self._model.hidden(self._ids[rows, first:].gather(1, to_left))
            results.append((rows, features.take_along_dim(to_right[..., None], 1)))
        return results


def _dynamic_cache(config: Any) -> Any:
    from transformers.cache_utils import DynamicCache

    return _with_one_dtype(DynamicCache)(config=config)


def _static_cache(config: Any, capacity: int) -> Any:
    from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

    cache = _with_one_dtype(StaticCache)(config, max_cache_len=capacity)
    # A buffer of the window's length counts its tokens outside the graph, so that each token would be compiled again.
    # In a longer one the mask hides tokens outside the window.
    cache.layers = [
        StaticLayer(capacity) if type(layer) is StaticSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


def _with_one_dtype(kind: Any) -> Any:
    """Return the library's cache ``kind`` such that it stores keys in the dtype of the values. Under autocast rotary
    positions make keys fp32, although attention rounds them in any case."""

    class OneDtype(kind):
        def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            """Store keys and values [batch, kv_heads, length, head_dim] and return all in the dtype of the values."""
            return kind.update(self, key_states.to(value_states.dtype), value_states, *more, **named)

    return OneDtype
