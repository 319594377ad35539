"""Quintet's own transformer, put together from parts."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from quintet.config.model.attention import DOCUMENT_MASKS, AttentionConfig, CausalAttentionConfig
from quintet.config.model.feedforward import FeedForwardConfig, GatedFeedForwardConfig
from quintet.config.model.init import InitConfig, NormalInitConfig
from quintet.config.model.norm import (
    ModelNormConfig,
    NoNormConfig,
    NormConfig,
    PlaceNormConfig,
    RMSNormConfig,
)
from quintet.config.model.position import PositionConfig, RopeConfig
from quintet.config.section import ConfigSection, config_error, key


class HeadConfig(ConfigSection):
    """What turns the last features into logits: norm, dropout, one matrix."""

    norm: PlaceNormConfig = key(
        ModelNormConfig(), "norm before the matrix; the model's is left out with block: post_norm, which ends with one"
    )
    bias: bool = key(False, "a bias for each token")
    dropout: float = key(0.0, "dropout on what enters the matrix", unit="probability", ge=0, lt=1)


class TransformerConfig(ConfigSection):
    """Embedding, blocks of attention and feed-forward around a residual stream, and the head."""

    kind: Literal["transformer"] = key("transformer", "Quintet's own transformer")
    layers: int = key(6, "blocks", unit="blocks", ge=1)
    width: int = key(384, "size of the residual stream", unit="features", ge=1)
    vocab_size: int | None = key(
        None,
        "rows of the embedding, at least as many as the tokenizer has ids; as many when not given",
        unit="ids",
        ge=1,
    )
    pad_vocab_size_multiple: int = key(
        1, "round the rows up to a multiple; those added are never predicted and never in the loss", unit="ids", ge=1
    )
    context_length: int | None = key(
        None, "most positions the model is built for; data.sequence_length when not given", unit="tokens", ge=2
    )
    block: Literal["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"] = key(
        "pre_norm",
        "where the norms are: x + f(norm(x)); norm(x + f(x)); x + norm(f(x)); x + norm(f(norm(x))); or parallel, "
        "x + attention(norm(x)) + feedforward(norm(x)) with one norm for both",
    )
    attention: AttentionConfig = key(CausalAttentionConfig(), "how positions exchange information")
    feedforward: FeedForwardConfig = key(GatedFeedForwardConfig(), "what each position computes by itself")
    norm: NormConfig = key(RMSNormConfig(), "norm at all the places that name no other")
    position: PositionConfig = key(RopeConfig(), "how a position is told")
    head: HeadConfig = key(HeadConfig(), "from the last features to logits")
    init: InitConfig = key(NormalInitConfig(), "how weights start")
    embedding_scale: float = key(1.0, "factor on the embedding of a token", unit="factor", gt=0)
    embedding_dropout: float = key(0.0, "dropout on the embedding", unit="probability", ge=0, lt=1)
    residual_dropout: float = key(
        0.0, "dropout on what attention and feed-forward add to the residual", unit="probability", ge=0, lt=1
    )
    tie_embeddings: bool = key(True, "one matrix for embedding and head (Press and Wolf 2017)")
    tie_feedforward: bool = key(False, "one feed-forward network for all blocks, each with its own norm")
    tie_attention_output: bool = key(False, "one output projection of the attention for all blocks")

    @model_validator(mode="after")
    def _parts_fit(self) -> TransformerConfig:
        attention = self.attention
        if attention.head_dim is None and self.width % self.heads:
            raise config_error(
                "attention.heads",
                f"{self.heads} heads do not divide width {self.width}; set attention.head_dim as well",
            )
        if self.heads % self.kv_heads:
            raise config_error("attention.kv_heads", f"{self.kv_heads} does not divide the {self.heads} query heads")
        if isinstance(self.position, RopeConfig):
            if self.position.fraction == 1 and self.head_dim % 2:
                raise config_error(
                    "attention.head_dim", f"rotary positions need an even head size, not {self.head_dim}"
                )
            if not self.rotary_dim:
                raise config_error(
                    "position.fraction", f"turns not even one pair of the {self.head_dim} features of a head"
                )
        if attention.qk_norm != "none" and self.norm.kind == "none":
            raise config_error("attention.qk_norm", "takes its kind from model.norm, which is none")
        if self.block == "parallel" and self.feedforward.norm.kind != "model":
            raise config_error("feedforward.norm", "a parallel block has one norm; set attention.norm or norm")
        return self

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.attention.heads or max(1, self.width // 64)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.attention.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.attention.head_dim or self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        """Features of one head that are turned."""
        if not isinstance(self.position, RopeConfig):
            return 0
        # Written as a fraction, 32 of 80 features is 0.4, whose product with 80 may fall just short of 32.
        return math.floor(self.position.fraction * self.head_dim / 2 + 1e-6) * 2

    @property
    def learns_positions(self) -> bool:
        """Whether a learned vector a position is added to the embedding."""
        return self.position.kind == "learned" or (isinstance(self.position, RopeConfig) and self.position.learned)

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        given = self.attention.output_bias
        return self.attention.bias if given is None else given

    @property
    def hidden(self) -> int:
        """Features inside the feed-forward network."""
        if self.feedforward.width is not None:
            return self.feedforward.width
        if self.feedforward.factor is not None:
            return max(1, round(self.feedforward.factor * self.width))
        return 4 * self.width if self.feedforward.kind == "plain" else -(-8 * self.width // (3 * 64)) * 64

    @property
    def attention_norm(self) -> NormConfig:
        """Norm of the attention's input."""
        return self._norm_of(self.attention.norm)

    @property
    def feedforward_norm(self) -> NormConfig:
        """Norm of the feed-forward network's input."""
        return self._norm_of(self.feedforward.norm)

    @property
    def last_norm(self) -> NormConfig:
        """Norm before the head."""
        if self.block == "post_norm" and isinstance(self.head.norm, ModelNormConfig):
            return NoNormConfig(kind="none")
        return self._norm_of(self.head.norm)

    @property
    def tells_documents(self) -> bool:
        """Whether the mask depends on where documents end."""
        return self.attention.mask in DOCUMENT_MASKS

    @property
    def tells_prompts(self) -> bool:
        """Whether the mask depends on where the prompts of documents end."""
        return self.attention.mask == "prefix"

    def _norm_of(self, place: PlaceNormConfig) -> NormConfig:
        return self.norm if isinstance(place, ModelNormConfig) else place

    def rows(self, vocab_size: int) -> int:
        """Rows of the embedding for ``vocab_size`` ids."""
        return -(-vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple
