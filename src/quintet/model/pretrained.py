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
from quintet.model.abilities import Abilities
from quintet.model.pretrained_cache import PretrainedCache, TextCache


class PretrainedModel(nn.Module):
    """A causal language model of the transformers library, for text alone.

    ``inner`` is the library's model, or peft's model around it where adapters are trained. ``linear_head`` says whether
    its logits are a product of the backbone's features with a matrix and no more; then a loss need not have them all in
    memory. Where it is False (a soft cap, a scale, an adapter in the head) ``hidden`` returns the logits themselves.
    ``notes`` are lines for the user: what of the checkpoint was left out, what it says wrongly, and what is done in a
    slower way. ``abilities`` says which ways of reading give what plain reading does.
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
        which ``start_cache`` gave, ``ids`` continues the positions that are stored there; then only the features of
        each row's last document mean something, for what stands before it is hidden as padding is.
        """
        if isinstance(cache, TextCache):
            return cache.extend(ids, documents)
        if cache is not None:
            return self._read(ids, **{self._cache_name: cache.past}, **cache.place(ids, documents))
        if documents is None:
            return self._read(ids)
        positions = self.positions(ids, documents)
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
    ) -> Any:  # a PretrainedCache or TextCache; a Reader gives it back to its model, which pyright cannot know
        """An empty cache for ``batch`` texts of up to ``capacity`` positions, of which row i begins with ``padding[i]``
        that hold no token; ``static`` gives its tensors one shape, where the model can do with that. Whatever is read
        with it, the features are those of plain reading."""
        assert padding is None or len(padding) == batch
        can = self.abilities
        side_by_side = can.batch or not (padding or self.config.tells_documents)
        if can.cache and can.reorder and side_by_side and not can.beyond(capacity):
            return self.own_cache(capacity, padding, static=static and can.static)
        return TextCache(self, batch, capacity, padding)

    def own_cache(self, capacity: int, padding: list[int] | None = None, *, static: bool = False) -> PretrainedCache:
        """The library's cache, without regard to what the model can do with it."""
        begins = None if padding is None else torch.tensor(padding, device=self.device)
        return PretrainedCache(self.causal.config, capacity, begins, static=static, skipped=self._skipped)

    def positions(self, ids: Tensor, documents: Tensor) -> Tensor:
        """The positions of ``ids`` in ``documents``, both [batch, length], as the model counts them in one text."""
        places = document_positions(documents)
        if self._skipped is None:
            return places
        counted = (ids != self._skipped).long()
        numbers = counted.cumsum(1)
        begins = torch.arange(ids.shape[1], device=ids.device) - places
        numbers = numbers - (numbers - counted).gather(1, begins)
        return self._skipped + numbers * counted

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
        return arguments(self._reader, self.causal)

    @cached_property
    def _cache_name(self) -> str:
        return "cache_params" if "cache_params" in self._takes else "past_key_values"

    @property
    def _skipped(self) -> int | None:
        """The id that has no position of its own, where there is one."""
        if self.abilities.positions != "after padding id":
            return None
        return padding_id(self.causal)

    @property
    def _attention(self) -> str:
        return self.causal.config._attn_implementation

    def _read(self, ids: Tensor, **more: Any) -> Tensor:
        if ids.device.type == "cpu" and torch.is_grad_enabled() and self._attention == "flex_attention":
            raise UserError("model.attention_backend: flex_attention cannot train on a CPU; leave it out")
        more["use_cache"] = self._cache_name in more
        if self.abilities.positions == "own":
            more.pop("position_ids", None)
        known = {name: value for name, value in more.items() if name in self._takes}
        found = self._reader(input_ids=ids, **known)
        return found.last_hidden_state if self.linear_head else found.logits


def arguments(reader: nn.Module, causal: nn.Module) -> frozenset[str]:
    """The names that ``reader`` takes, a part of ``causal`` or ``causal`` itself; of a part that passes on all it is
    given, those of ``causal``."""
    own, whole = (frozenset(inspect.signature(one.forward).parameters) for one in (reader, causal))
    return own if "input_ids" in own else whole


def padding_id(causal: Any) -> int | None:
    """The id that the configuration of ``causal`` calls padding, where it names one."""
    return getattr(causal.config.get_text_config(decoder=True), "pad_token_id", None)


def document_positions(documents: Tensor) -> Tensor:
    """The position of each token in its document: int64 of the shape of ``documents`` [batch, length]."""
    index = torch.arange(documents.shape[1], device=documents.device)
    new = torch.diff(documents, dim=1, prepend=documents[:, :1]) != 0
    return index - torch.where(new, index, 0).cummax(1).values
