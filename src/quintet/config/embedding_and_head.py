"""The parts at both ends of the transformer: the embedding and the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from quintet.config.norm import ModelNormConfig, PlaceNormConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class TokenEmbeddingConfig(ConfigSection):
    """A matrix with a row for each id."""

    kind: Literal["token"] = key("token", "a trained vector for each id")


BYTE_SYMBOLS = 258
"""Symbols that spell an id: 256 bytes, the padding after the last one, and a mark that begins an id without text."""
PADDING, MARK = 256, 257


class _ByteLevel(ConfigSection):
    """The keys of both byte-level parts: how ids are spelled, and the small transformer over the bytes of each."""

    bytes: int = key(12, "bytes that an id is spelled with; a longer one by its first", unit="bytes", ge=4)
    width: int = key(128, "features of a byte", unit="features", ge=1)
    heads: int = key(8, "heads of the attention among the bytes of an id", unit="heads", ge=1)
    dropout: float = key(
        0.0, "dropout on the attention weights and on what attention adds", unit="probability", ge=0, le=1
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for heads that do not divide the width."""
        if self.width % self.heads:
            yield config_error("heads", f"{self.heads} heads do not divide width {self.width}")


class ByteEmbeddingConfig(_ByteLevel):
    """An embedding of the bytes of an id, which a small transformer mixes and pools by their mean."""

    kind: Literal["bytes"] = key(..., "the bytes of each id, mixed by a small transformer and pooled")
    layers: int = key(4, "blocks over the bytes of an id", unit="blocks", ge=1)

    def block_widths(self, model_width: int) -> Iterator[tuple[int, int]]:
        """Yield the features that each block takes and gives: those in the middle are twice as wide, the last one has
        the model's width."""
        for layer in range(self.layers):
            given = model_width if layer == self.layers - 1 else 2 * self.width
            yield (2 * self.width if layer else self.width), given


class LinearHeadConfig(ConfigSection):
    """The head, which turns the last features into logits: norm, dropout, one matrix."""

    kind: Literal["linear"] = key("linear", "one matrix with a row for each id")
    norm: PlaceNormConfig = key(
        ModelNormConfig(), "norm before the head; the model's is left out with block: post_norm, which ends with one"
    )
    bias: bool = key(False, "a bias for each token")
    dropout: float = key(0.0, "dropout on what enters the matrix", unit="probability", ge=0, le=1)


class ByteHeadConfig(_ByteLevel):
    """A head that predicts the bytes of the next id, all at once, by a small transformer over their places."""

    kind: Literal["bytes"] = key(..., "all bytes of the next id at once, by a small transformer")
    layers: int = key(7, "blocks over the bytes of an id", unit="blocks", ge=1)
    norm: PlaceNormConfig = key(
        ModelNormConfig(), "norm before the head; the model's is left out with block: post_norm, which ends with one"
    )
    reconstruction: float = key(
        0.0,
        "weight in training of a second loss: the bytes of an input, which the head reads from its embedding alone",
        unit="factor",
        ge=0,
    )

    def block_widths(self) -> Iterator[tuple[int, int]]:
        """Yield the features that each block takes and gives."""
        return ((self.width, self.width) for _ in range(self.layers))


EmbeddingConfig = Annotated[TokenEmbeddingConfig | ByteEmbeddingConfig, Field(discriminator="kind")]
HeadConfig = Annotated[LinearHeadConfig | ByteHeadConfig, Field(discriminator="kind")]
