"""A model of the transformers library behind the interface of Quintet's own."""

from __future__ import annotations

import copy
import inspect
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError


class PretrainedModel(nn.Module):
    """A causal language model of the transformers library, for text alone.

    ``inner`` is the library's model, or peft's model around it where adapters are trained. ``linear_head`` says whether
    its logits are a product of the backbone's features with a matrix and no more; then a loss need not have them all in
    memory. Where it is False (a soft cap, a scale, an adapter in the head) ``hidden`` returns the logits themselves.
    ``notes`` are lines on the checkpoint for the user: what of it was left out, what it says wrongly.
    """

    def __init__(
        self, config: HuggingFaceConfig, inner: Any, vocab_size: int, context_length: int, *, linear_head: bool
    ) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.linear_head = linear_head
        self.notes: list[str] = []
        self.inner = inner

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] of the token after each of ``ids`` [batch, length]; see ``hidden``."""
        return self.logits(self.hidden(ids, documents=documents, prompts=prompts))

    def hidden(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        prompts: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """What ``logits`` takes, [batch, length, width or rows], of ``ids`` [batch, length].

        ``documents`` [batch, length] numbers the document of each token: it sees no other document, and its position is
        counted from where its own begins. ``prompts`` is not read, for these models see backwards only. With ``cache``,
        a ``PretrainedCache``, ``ids`` continues the positions that are stored there; then only the features of each
        row's last document mean something, for what stands before it is hidden as padding is.
        """
        if cache is not None:
            return self._read(ids, past_key_values=cache.past, **cache.place(ids, documents))
        if documents is None:
            return self._read(ids)
        positions = document_positions(documents)
        if "flash" in self._attention:
            # FlashAttention finds documents where positions restart, and only in a batch of one row.
            found = self._read(ids.reshape(1, -1), position_ids=positions.reshape(1, -1))
            return found.view(*ids.shape, -1)
        return self._read(ids, position_ids=positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width or rows] to [..., vocab]; rows beyond the tokenizer's ids are cut off."""
        found = self._head(hidden) if self.linear_head else hidden
        return found[..., : self.vocab_size]

    def start_cache(
        self, batch: int, capacity: int, *, padding: list[int] | None = None, static: bool = False
    ) -> Any:  # a PretrainedCache; a Reader gives it back to the model that made it, which pyright cannot know
        """An empty cache for ``batch`` texts of up to ``capacity`` positions, of which row i begins with ``padding[i]``
        that hold no token; ``static`` gives its tensors one shape. Raises UserError for a model that keeps none."""
        assert padding is None or len(padding) == batch
        if "past_key_values" not in self._takes:
            raise UserError(
                f"generate: {type(self.causal).__name__} keeps no cache of keys and values, so that Quintet cannot let "
                "it write; in training leave the samples out (sample.prompts: [])"
            )
        begins = None if padding is None else torch.tensor(padding, device=self.device)
        return PretrainedCache(self.causal.config, capacity, begins, static=static)

    def merged(self) -> Any:
        """The library's model (``transformers.PreTrainedModel``) in fp32, a copy, with adapters folded into the weights
        that they adapt."""
        inner = copy.deepcopy(self.inner)
        return inner if self.config.lora is None else inner.merge_and_unload()

    @property
    def causal(self) -> Any:
        """The library's model, without what peft puts around it."""
        return self.inner if self.config.lora is None else self.inner.get_base_model()

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, for what is done to one after the other; the backbone where they cannot be told."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [m for m in self.causal.modules() if isinstance(m, GradientCheckpointingLayer)] or [self._reader]

    @property
    def head_weight(self) -> Tensor | None:
        """[rows, width]; None where the logits are more than a product with a matrix."""
        return self._head.weight if self.linear_head else None

    @property
    def head_bias(self) -> Tensor | None:
        """[rows], or None."""
        return self._head.bias if self.linear_head else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal.device

    @property
    def _head(self) -> nn.Linear:
        return self.causal.get_output_embeddings()

    @property
    def _reader(self) -> nn.Module:
        return self.causal.base_model if self.linear_head else self.causal

    @cached_property
    def _takes(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._reader.forward).parameters)

    @property
    def _attention(self) -> str:
        return self.causal.config._attn_implementation

    def _read(self, ids: Tensor, **more: Any) -> Tensor:
        if ids.device.type == "cpu" and torch.is_grad_enabled() and self._attention == "flex_attention":
            raise UserError("model.attention_backend: flex_attention cannot train on a CPU; leave it out")
        more["use_cache"] = "past_key_values" in more
        known = {name: value for name, value in more.items() if name in self._takes}
        found = self._reader(input_ids=ids, **known)
        return found.last_hidden_state if self.linear_head else found.logits


class PretrainedCache:
    """The transformers library's cache of keys and values, and where the text of each row begins.

    ``begins`` [batch] counts the positions on the left of each row that nothing sees: padding, and documents before the
    last.
    """

    def __init__(self, config: Any, capacity: int, begins: Tensor | None, *, static: bool) -> None:
        self._capacity, self._static, self._begins = capacity, static, begins
        self._last: Tensor | None = None
        self.past: Any = _static_cache(config, capacity) if static else _dynamic_cache(config)

    @property
    def length(self) -> int:
        """Positions that are stored, padding included."""
        return int(self.past.get_seq_length())

    def place(self, ids: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """Positions and visible keys of ``ids`` [batch, length], which come next, as the library's arguments.

        They are told also where nothing is hidden, as the library's own ``generate`` does: not every model counts right
        by itself.
        """
        length, start = ids.shape[1], self.past.get_seq_length()
        index = torch.arange(length, device=ids.device) + start
        if documents is not None:
            self._begins = self._last_document(documents, index)
            self._last = documents[:, -1]
        begins = torch.zeros_like(ids[:, :1]) if self._begins is None else self._begins[:, None]
        # A static cache knows its length on the device; the mask has one shape then, whatever the length.
        keys = torch.arange(self._capacity if isinstance(start, Tensor) else start + length, device=ids.device)
        return {"position_ids": (index - begins).clamp(min=0), "attention_mask": (keys >= begins).long()}

    def select(self, rows: Tensor | list[int]) -> None:
        """Make row i of the batch what row ``rows[i]`` was; the batch may grow or shrink by it."""
        if self._static:
            # The library reorders the rows of a static cache, and cannot change their number.
            self.past.reorder_cache(torch.as_tensor(rows))
        else:
            self.past.batch_select_indices(torch.as_tensor(rows))
        if self._begins is not None:
            self._begins = self._begins[rows]
        if self._last is not None:
            self._last = self._last[rows]

    def _last_document(self, documents: Tensor, index: Tensor) -> Tensor:
        """Where the last of ``documents`` [batch, length] begins, [batch]."""
        before = documents[:, :1] - 1 if self._last is None else self._last[:, None]
        new = torch.diff(documents, dim=1, prepend=before) != 0
        stored = torch.zeros_like(documents[:, 0]) if self._begins is None else self._begins
        return torch.maximum(torch.where(new, index, 0).amax(1), stored)


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


def document_positions(documents: Tensor) -> Tensor:
    """The position of each token in its document: int64 of the shape of ``documents`` [batch, length]."""
    index = torch.arange(documents.shape[1], device=documents.device)
    new = torch.diff(documents, dim=1, prepend=documents[:, :1]) != 0
    return index - torch.where(new, index, 0).cummax(1).values
