"""The embedding and the head: matrices with a row for each id, or byte-level parts.

The byte-level parts follow SuperTinyLanguageModels (2024, `models/experimental/byte_level`). Data, masks and targets
keep the tokenizer's ids; a fixed table spells each id with symbols. In the embedding, each symbol has an embedding and
a place, a small transformer without a mask mixes the symbols of one id, and their mean is the id's embedding. The head
works in reverse: it projects the features of a position to one vector per place, mixes these vectors, and predicts the
symbols of all places at once. The probability of an id is the product of the probabilities of its symbols, padding
included, so that an id may have any number of bytes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.embedding_and_head import (
    BYTE_SYMBOLS,
    MARK,
    PADDING,
    ByteEmbeddingConfig,
    ByteHeadConfig,
    LinearHeadConfig,
    TokenEmbeddingConfig,
)
from quintet.config.model import TransformerConfig
from quintet.config.norm import NormConfig
from quintet.model.dropout import KeyedDropout
from quintet.model.norm import build_norm
from quintet.model.position import LearnedPosition
from quintet.model.typed import from_array


class Spelling(nn.Module):
    """The symbols of each id: its bytes, cut or padded to one length.

    An id without text is spelled with a mark and its number among such ids, in base 256 from the lowest digit on. The
    first of them, as a rule the end of a document, is only the mark.
    """

    symbols: Tensor
    log_shares: Tensor

    def __init__(self, pieces: Sequence[bytes], rows: int, length: int) -> None:
        """``pieces`` are the bytes of the ids, of which there may be fewer than ``rows``."""
        super().__init__()
        table = np.full((rows, length), PADDING, dtype=np.int32)  # int16 cannot be sent between processes
        without_text = 0
        for row in range(rows):
            spelled = list(pieces[row][:length]) if row < len(pieces) else []
            if not spelled:
                spelled = [MARK, *without_text.to_bytes((without_text.bit_length() + 7) // 8, "little")]
                without_text += 1
            table[row, : len(spelled)] = spelled
        _, same, counts = np.unique(table, axis=0, return_inverse=True, return_counts=True)
        self.register_buffer("symbols", from_array(table), persistent=False)
        shares = np.log(counts[same.reshape(-1)]).astype(np.float32)
        self.register_buffer("log_shares", from_array(shares), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the symbols, int64 [..., bytes], of int64 ``ids`` [...]."""
        return self.symbols[ids].long()


def cut_ids(pieces: Sequence[bytes], length: int) -> str | None:
    """Return a line on the ids with more than ``length`` bytes; None if there are none."""
    cut = [piece for piece in pieces if len(piece) > length]
    if not cut:
        return None
    spellings = Counter(piece[:length] for piece in pieces if len(piece) >= length)
    alike = sum(spellings[piece[:length]] > 1 for piece in cut)
    line = f"{len(cut):,} of {len(pieces):,} ids have more than {length} bytes and are spelled by their first {length}"
    return f"{line}; {alike:,} of them are spelled like another id" if alike else line


class ByteBlock(nn.Module):
    """down(gelu(up(norm(h)))) with h = x + attention(norm(x)), without a second residual, so that the width may change.

    All places of an id see one another, including padded ones.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, norm: NormConfig, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = build_norm(norm, inputs)
        self.qkv = nn.Linear(inputs, 3 * inputs, bias=False)
        self.output = nn.Linear(inputs, inputs, bias=False)
        self.attention_dropout = nn.Dropout(dropout)
        self.dropout = KeyedDropout(dropout)
        self.feedforward_norm = build_norm(norm, inputs)
        self.up = nn.Linear(inputs, 4 * inputs, bias=False)
        self.down = nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, x: Tensor, call: int = 0) -> Tensor:
        """Map floats [..., bytes, inputs] to [..., bytes, outputs]; ``call`` distinguishes two uses in one pass."""
        *leading, places, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(-1, places, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate)
        x = x + self.dropout(self.output(mixed.transpose(1, 2).reshape(*leading, places, width)), call)
        return self.down(F.gelu(self.up(self.feedforward_norm(x))))


class ByteEmbedding(nn.Module):
    """The mean of the mixed symbols of each id."""

    def __init__(
        self, config: ByteEmbeddingConfig, model: TransformerConfig, rows: int, pieces: Sequence[bytes]
    ) -> None:
        super().__init__()
        self.spelling = Spelling(pieces, rows, config.bytes)
        self.symbols = nn.Embedding(BYTE_SYMBOLS, config.width)
        self.position = LearnedPosition(config.bytes, config.width)
        self.blocks = nn.ModuleList(
            ByteBlock(inputs, outputs, config.heads, model.norm, config.dropout)
            for inputs, outputs in config.block_widths(model.width)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Map int64 ``ids`` [...] to floats [..., width]."""
        x = self.symbols(self.spelling(ids)) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=-2)


class ByteHead(nn.Module):
    """Logits of the symbols at all places of the next id."""

    def __init__(self, config: ByteHeadConfig, model: TransformerConfig, rows: int, pieces: Sequence[bytes]) -> None:
        super().__init__()
        self.spelling = Spelling(pieces, rows, config.bytes)
        self.reconstruction = config.reconstruction
        self.places = (config.bytes, config.width)
        self.projection = nn.Linear(model.width, config.bytes * config.width, bias=False)
        self.position = LearnedPosition(config.bytes, config.width)
        self.blocks = nn.ModuleList(
            ByteBlock(inputs, outputs, config.heads, model.norm, config.dropout)
            for inputs, outputs in config.block_widths()
        )
        self.symbols = nn.Linear(config.width, BYTE_SYMBOLS, bias=False)

    def forward(self, hidden: Tensor, call: int = 0) -> Tensor:
        """Map float features [..., width] to logits [..., bytes, symbols]; ``call`` distinguishes two uses in one
        pass."""
        # The original adds the projection to its sum with the places, so that the projection counts twice.
        x = 2 * self.projection(hidden).unflatten(-1, self.places) + self.position.weight
        for block in self.blocks:
            x = block(x, call)
        return self.symbols(x)

    def id_logits(self, hidden: Tensor, ids: int) -> Tensor:
        """Return fp32 log-probabilities [..., ids] of the first ``ids`` ids after ``hidden`` [..., width].

        The probabilities sum to less than 1, because some spellings are of no id. Ids with the same spelling share its
        probability evenly.
        """
        symbols = self(hidden).float().log_softmax(dim=-1)
        total = -self.spelling.log_shares[:ids].expand(*hidden.shape[:-1], -1)
        for place in range(self.places[0]):
            total = total + symbols[..., place, :][..., self.spelling.symbols[:ids, place].long()]
        return total


class Head(nn.Module):
    """The parameters of a linear head: a matrix, unless it is tied to the embedding, and an optional bias."""

    def __init__(self, config: LinearHeadConfig, model: TransformerConfig, rows: int, pieces: Sequence[bytes]) -> None:
        super().__init__()
        self.width = model.width
        self.weight = None if model.tie_embeddings else nn.Parameter(torch.empty(rows, model.width))
        self.bias = nn.Parameter(torch.empty(rows)) if config.bias else None

    def reset_parameters(self) -> None:
        """Draw uniformly within ±1 / sqrt(width), as PyTorch's linear layer does."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))


def _token_embedding(
    config: TokenEmbeddingConfig, model: TransformerConfig, rows: int, pieces: Sequence[bytes]
) -> nn.Embedding:
    # PyTorch's own initialisation, which `init` replaces, imports torch._dynamo on the meta device: 0.6 s.
    return nn.Embedding(rows, model.width, _weight=torch.empty(rows, model.width))


EMBEDDINGS: dict[str, Callable[[Any, TransformerConfig, int, Sequence[bytes]], nn.Embedding | ByteEmbedding]] = {
    "token": _token_embedding,
    "bytes": ByteEmbedding,
}
"""The builder of each kind, called with its config, the model's config, the number of ids and the bytes of each id."""

HEADS: dict[str, Callable[[Any, TransformerConfig, int, Sequence[bytes]], Head | ByteHead]] = {
    "linear": Head,
    "bytes": ByteHead,
}
"""The class of each kind, called as those of `EMBEDDINGS`."""
