"""Reading a batch of texts, whole at first and then token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model.build import Model
from quintet.model.mask import documents_after, leading


class Decoder:
    """What ``model`` expects to follow texts that grow by a token a step, with up to ``room`` positions.

    A causal model keeps keys and values of what it has read. Where later tokens change what earlier ones mean, in
    bidirectional attention, the whole texts are read anew for each token.
    """

    def __init__(
        self,
        model: Model,
        room: int,
        allowed_ids: int | None = None,
        *,
        static: bool = False,
        compile: bool = False,
    ) -> None:
        assert static or not compile, "only a cache of one shape can be compiled for"
        config = model.config
        self._anew = isinstance(config, TransformerConfig) and config.attention.kind == "bidirectional"
        if self._anew and static:
            raise UserError(
                "generate: bidirectional attention reads the whole text anew for each token and keeps no cache, so "
                "that there is none of one shape; leave --static-cache out"
            )
        self._model, self._room, self._allowed, self._static = model, room, allowed_ids, static
        self._tells_documents = config.tells_documents
        self._compiled: Any = torch.compile(self._logits, dynamic=False) if compile else None
        self._texts: list[list[int]] = []
        self._prompts: list[int] = []
        self._preceding: list[int] = []
        self._length = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for one token more."""
        return self._length >= self._room

    def begin(self, texts: list[list[int]], prompts: list[int], preceding: list[int]) -> Tensor:
        """fp32 logits [batch, allowed ids] of the token behind each of ``texts``; forget what was read before.

        ``prompts`` counts the tokens at the beginning of each text that see one another, for the prefix mask, and
        ``preceding`` those that are of the document before, for masks that tell documents apart.
        """
        self._texts, self._prompts, self._preceding = texts, prompts, preceding
        self._length = max(map(len, texts))
        padding = [self._length - len(text) for text in texts]
        device = self._model.device
        ids = torch.tensor([[0] * left + text for left, text in zip(padding, texts, strict=True)], device=device)
        self._cache = self._model.start_cache(
            len(texts), self._room, padding=padding if any(padding) else None, static=self._static
        )
        documents = None
        before, prompt, left = torch.tensor([preceding, prompts, padding], device=device)
        if self._tells_documents and any(preceding):
            documents = documents_after(before, self._length, left)
        # A new length would be compiled for again.
        with torch.compiler.set_stance("force_eager"):
            return self._logits(ids, documents, leading(prompt, self._length, left))

    def read(self, tokens: list[int]) -> Tensor:
        """The same when each text has grown by one of ``tokens``."""
        assert not self.full
        if self._anew:
            grown = [[*text, token] for text, token in zip(self._texts, tokens, strict=True)]
            return self.begin(grown, self._prompts, self._preceding)
        self._length += 1
        ids = torch.tensor(tokens, device=self._model.device)
        documents = torch.ones_like(ids)[:, None] if self._tells_documents and any(self._preceding) else None
        if self._compiled is not None:
            return self._compiled(ids[:, None], documents, None)
        with torch.compiler.set_stance("force_eager"):
            return self._logits(ids[:, None], documents, None)

    def select(self, rows: list[int]) -> None:
        """Make row i what row ``rows[i]`` was."""
        self._texts = [self._texts[row] for row in rows]
        self._prompts = [self._prompts[row] for row in rows]
        self._preceding = [self._preceding[row] for row in rows]
        self._cache.select(torch.tensor(rows, device=self._model.device))

    def _logits(self, ids: Tensor, documents: Tensor | None, prompts: Tensor | None) -> Tensor:
        hidden = self._model.hidden(ids, documents=documents, prompts=prompts, cache=self._cache)[:, -1]
        return self._model.logits(hidden)[:, : self._allowed].float()
