"""The transformer, put together from parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.config.part import Part, key, problem

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "leaky_relu", "silu", "tanh", "sigmoid", "none"]


class CausalAttentionConfig(Part):
    """Multi-head attention to earlier positions (Vaswani et al. 2017); fewer key/value heads make it grouped-query
    (Ainslie et al. 2023), one makes it multi-query (Shazeer 2019)."""

    kind: Literal["causal"] = key("causal", "each position attends to itself and to earlier ones")
    heads: int | None = key(
        None, "query heads; one for each 64 features of the width when not given", unit="heads", ge=1
    )
    kv_heads: int | None = key(None, "key and value heads; as many as `heads` when not given", unit="heads", ge=1)
    head_dim: int | None = key(None, "size of a head; width / heads when not given", unit="features", ge=1)
    bias: bool = key(False, "biases in the four projections")
    dropout: float = key(0.0, "dropout on the attention weights", unit="probability", ge=0, lt=1)


AttentionConfig = CausalAttentionConfig


class GatedFeedForwardConfig(Part):
    """A gated feed-forward network (Shazeer 2020): down(activation(gate(x)) * up(x)); with silu it is SwiGLU."""

    kind: Literal["gated"] = key("gated", "gated: down(activation(gate(x)) * up(x))")
    activation: Activation = key("silu", "function of the gate")
    width: int | None = key(
        None, "hidden size; 8/3 of the model's width, up to a multiple of 64, when not given", unit="features", ge=1
    )
    bias: bool = key(False, "biases in the three projections")
    dropout: float = key(0.0, "dropout on the hidden features", unit="probability", ge=0, lt=1)


class PlainFeedForwardConfig(Part):
    """The feed-forward network of the first transformers: down(activation(up(x)))."""

    kind: Literal["plain"] = key(..., "plain: down(activation(up(x)))")
    activation: Activation = key("gelu", "function between the two projections")
    width: int | None = key(None, "hidden size; 4 times the model's width when not given", unit="features", ge=1)
    bias: bool = key(False, "biases in the two projections")
    dropout: float = key(0.0, "dropout on the hidden features", unit="probability", ge=0, lt=1)


FeedForwardConfig = Annotated[GatedFeedForwardConfig | PlainFeedForwardConfig, Field(discriminator="kind")]


class RMSNormConfig(Part):
    """Root-mean-square norm with a gain (Zhang and Sennrich 2019)."""

    kind: Literal["rms"] = key("rms", "root-mean-square norm")
    eps: float = key(1e-5, "added to the mean square", unit="squared feature", gt=0)


class LayerNormConfig(Part):
    """Layer norm (Ba et al. 2016)."""

    kind: Literal["layer"] = key(..., "layer norm")
    eps: float = key(1e-5, "added to the variance", unit="squared feature", gt=0)
    bias: bool = key(True, "a bias beside the gain")


class NoNormConfig(Part):
    """No norm at all."""

    kind: Literal["none"] = key(..., "no norm")


NormConfig = Annotated[RMSNormConfig | LayerNormConfig | NoNormConfig, Field(discriminator="kind")]


class RopeConfig(Part):
    """Rotary positions (Su et al. 2021): queries and keys are turned by an angle that grows with the position."""

    kind: Literal["rope"] = key("rope", "rotary, in the attention")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)


class LearnedPositionConfig(Part):
    """One learned vector a position, added to the token's embedding (as GPT-2)."""

    kind: Literal["learned"] = key(..., "learned vectors, added to the embedding")


class SinusoidalPositionConfig(Part):
    """Fixed sines and cosines, added to the token's embedding (Vaswani et al. 2017)."""

    kind: Literal["sinusoidal"] = key(..., "fixed sines and cosines, added to the embedding")
    theta: float = key(10_000.0, "base of the wavelengths: 2π to 2π·theta positions", unit="positions", gt=1)


class NoPositionConfig(Part):
    """No positions: the causal mask alone tells order (Haviv et al. 2022)."""

    kind: Literal["none"] = key(..., "none")


PositionConfig = Annotated[
    RopeConfig | LearnedPositionConfig | SinusoidalPositionConfig | NoPositionConfig, Field(discriminator="kind")
]


class NormalInitConfig(Part):
    """Normal weights and zero biases, as GPT-2."""

    kind: Literal["normal"] = key("normal", "normally distributed weights")
    std: float = key(0.02, "standard deviation", unit="weight", gt=0)
    scale_residual: bool = key(
        True, "divide by sqrt(2 · layers) where a projection writes into the residual stream (Radford et al. 2019)"
    )


class XavierInitConfig(Part):
    """Uniform weights by Glorot and Bengio (2010); biases are zero, embeddings normal with 0.02."""

    kind: Literal["xavier"] = key(..., "Xavier uniform")
    gain: float = key(1.0, "factor on the bound", unit="factor", gt=0)


class KaimingInitConfig(Part):
    """Normal weights by He et al. (2015); biases are zero, embeddings normal with 0.02."""

    kind: Literal["kaiming"] = key(..., "Kaiming normal")
    mode: Literal["fan_in", "fan_out"] = key("fan_in", "keep the variance of the forward or of the backward pass")
    nonlinearity: Literal["gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear"] = key(
        "gelu", "function whose gain is used; gelu and silu have relu's"
    )


class NoInitConfig(Part):
    """What PyTorch's modules do by themselves."""

    kind: Literal["none"] = key(..., "PyTorch's own")


InitConfig = Annotated[
    NormalInitConfig | XavierInitConfig | KaimingInitConfig | NoInitConfig, Field(discriminator="kind")
]


class TransformerConfig(Part):
    """A decoder: embedding, blocks of attention and feed-forward with a norm before each, a last norm, and the head."""

    kind: Literal["transformer"] = key("transformer", "Quintet's own transformer")
    layers: int = key(6, "blocks", unit="blocks", ge=1)
    width: int = key(384, "size of the residual stream", unit="features", ge=1)
    vocab_size: int | None = key(
        None,
        "rows of the embedding, at least as many as the tokenizer has ids; as many when not given",
        unit="ids",
        ge=1,
    )
    context_length: int | None = key(
        None, "most positions the model is built for; data.sequence_length when not given", unit="tokens", ge=2
    )
    attention: AttentionConfig = key(CausalAttentionConfig(), "how positions exchange information")
    feedforward: FeedForwardConfig = key(GatedFeedForwardConfig(), "what each position computes by itself")
    norm: NormConfig = key(RMSNormConfig(), "norm before attention, before feed-forward and before the head")
    position: PositionConfig = key(RopeConfig(), "how a position is told")
    init: InitConfig = key(NormalInitConfig(), "how weights start")
    dropout: float = key(
        0.0, "dropout on the embedding and on what each sub-block adds to the residual", unit="probability", ge=0, lt=1
    )
    tie_embeddings: bool = key(True, "one matrix for embedding and head (Press and Wolf 2017)")
    head_bias: bool = key(False, "a bias in the head")

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerConfig:
        attention = self.attention
        if attention.head_dim is None and self.width % self.heads:
            raise problem(
                "attention.heads",
                f"{self.heads} heads do not divide width {self.width}; set attention.head_dim as well",
            )
        if self.heads % self.kv_heads:
            raise problem("attention.kv_heads", f"{self.kv_heads} does not divide the {self.heads} query heads")
        if self.position.kind == "rope" and self.head_dim % 2:
            raise problem("attention.head_dim", f"rotary positions need an even head size, not {self.head_dim}")
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
    def hidden(self) -> int:
        """Features inside the feed-forward network."""
        if self.feedforward.width is not None:
            return self.feedforward.width
        return 4 * self.width if self.feedforward.kind == "plain" else -(-8 * self.width // (3 * 64)) * 64


ModelConfig = TransformerConfig
