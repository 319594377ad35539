"""The kinds of `model.embedding` and of `model.head`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from quintet.config.norm import ModelNormConfig, PartNormConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class TokenEmbeddingConfig(ConfigSection):
    """A matrix with one row per id."""

    kind: Literal["token"] = key("token", "a trained vector per id")


BYTE_SYMBOLS = 258
"""Symbols that spell an id: 256 bytes, padding after the last byte, and a mark that starts an id without text."""
PADDING, MARK = 256, 257


class _ByteLevel(ConfigSection):
    """The keys of both byte-level parts: how ids are spelled, and the small transformer over the bytes of an id."""

    bytes: int = key(12, "bytes that an id is spelled with; longer ids are cut", unit="bytes", ge=4)
    width: int = key(128, "features of a byte", unit="features", ge=1)
    heads: int = key(8, "heads of the attention among the bytes of an id", unit="heads", ge=1)
    dropout: float = key(
        0.0, "dropout on the attention weights and on the attention's output", unit="probability", ge=0, le=1
    )

    def errors(self) -> ConfigErrors:
        """Yield an error if the heads do not divide the width."""
        if self.width % self.heads:
            yield config_error("heads", f"{self.heads} heads do not divide width {self.width}")


class ByteEmbeddingConfig(_ByteLevel):
    """An embedding made from the bytes of an id by a small transformer, whose outputs are averaged."""

    kind: Literal["bytes"] = key(..., "the bytes of each id, through a small transformer")
    layers: int = key(4, "blocks over the bytes of an id", unit="blocks", ge=1)

    def block_widths(self, model_width: int) -> Iterator[tuple[int, int]]:
        """Yield the input and output width of each block: twice ``width`` between blocks, ``model_width`` at the
        end."""
        for layer in range(self.layers):
            output_width = model_width if layer == self.layers - 1 else 2 * self.width
            yield (2 * self.width if layer else self.width), output_width


class LinearHeadConfig(ConfigSection):
    """A linear head from the last features to logits: norm, dropout, one matrix."""

    kind: Literal["linear"] = key("linear", "one matrix with a row per id")
    norm: PartNormConfig = key(
        ModelNormConfig(),
        "norm before the head; by default the model's, and none with block: post_norm, which ends with a norm",
    )
    bias: bool = key(False, "a bias per id")
    dropout: float = key(0.0, "dropout on the input of the matrix", unit="probability", ge=0, le=1)


class ByteHeadConfig(_ByteLevel):
    """A head that predicts all bytes of the next id at once, by a small transformer over their positions in it."""

    kind: Literal["bytes"] = key(..., "all bytes of the next id at once, by a small transformer")
    layers: int = key(7, "blocks over the bytes of an id", unit="blocks", ge=1)
    norm: PartNormConfig = key(
        ModelNormConfig(),
        "norm before the head; by default the model's, and none with block: post_norm, which ends with a norm",
    )
    reconstruction: float = key(
        0.0,
        "weight in training of a second loss, for which the head predicts the bytes of an input from its embedding",
        unit="factor",
        ge=0,
    )

    def block_widths(self) -> Iterator[tuple[int, int]]:
        """Yield the input and output width of each block."""
        return ((self.width, self.width) for _ in range(self.layers))


EmbeddingConfig = Annotated[TokenEmbeddingConfig | ByteEmbeddingConfig, Field(discriminator="kind")]
HeadConfig = Annotated[LinearHeadConfig | ByteHeadConfig, Field(discriminator="kind")]
