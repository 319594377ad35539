"""The model: Quintet's own transformer, put together from parts, or a model of Hugging Face's library."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.embedding_and_head import (
    ByteEmbeddingConfig,
    ByteHeadConfig,
    EmbeddingConfig,
    HeadConfig,
    LinearHeadConfig,
    TokenEmbeddingConfig,
)
from quintet.config.norm import ModelNormConfig, NoNormConfig, NormConfig, PlaceNormConfig, RMSNormConfig
from quintet.config.position import (
    PositionConfig,
    RopeConfig,
)
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.sharing import How, SharedPart, SharingConfig

DOCUMENT_MASKS = ("causal_document", "document", "prefix")


class _Attention(ConfigSection):
    """The keys of both kinds: heads, projections, window, dropout, the code that computes it."""

    heads: int | None = key(
        None, "query heads; one for each 64 features of the width when not given", unit="heads", ge=1
    )
    kv_heads: int | None = key(None, "key and value heads; as many as `heads` when not given", unit="heads", ge=1)
    head_dim: int | None = key(None, "size of a head; width / heads when not given", unit="features", ge=1)
    bias: bool = key(False, "biases in the projections to queries, keys and values")
    output_bias: bool | None = key(None, "a bias in the output projection; as `bias` when not given")
    qk_norm: Literal["none", "head", "projection"] = key(
        "none",
        "norm of queries and keys before they meet, of each head by itself or of all heads together, with the eps and "
        "the kind of the model's norm",
    )
    scale: float | None = key(
        None, "factor on the products of queries and keys; 1 / sqrt(head_dim) when not given", unit="factor", gt=0
    )
    window: int | None = key(
        None,
        "positions that one sees at most on each side, itself counted; all of them when not given",
        unit="positions",
        ge=1,
    )
    restart_positions: bool = key(False, "positions start anew with every document, for the masks that tell documents")
    norm: PlaceNormConfig = key(ModelNormConfig(), "norm around the attention")
    dropout: float = key(0.0, "dropout on the attention weights", unit="probability", ge=0, le=1)
    input_dropout: float = key(0.0, "dropout on what enters the attention", unit="probability", ge=0, le=1)
    backend: Literal["auto", "sdpa", "flash", "flex"] = key(
        "auto",
        "what computes it: PyTorch's scaled_dot_product_attention with the kernel it chooses (sdpa) or with "
        "FlashAttention alone (flash), or FlexAttention (flex); auto takes the fastest for mask and device",
    )


class CausalAttentionConfig(_Attention):
    """Multi-head attention to earlier positions (Vaswani et al. 2017); fewer key/value heads make it grouped-query
    (Ainslie et al. 2023), one makes it multi-query (Shazeer 2019)."""

    kind: Literal["causal"] = key("causal", "each position attends to itself and to earlier ones")
    mask: Literal["causal", "causal_document", "prefix"] = key(
        "causal",
        "causal: all earlier positions; causal_document: those of the same document; prefix: the same, and the prompt "
        "of a document, which is what stands before its first token with a loss, also sees itself backwards",
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each option that the mask or the backend excludes."""
        if self.mask == "prefix" and self.window is not None:
            yield config_error("window", "does not go with mask: prefix; leave one of the two out")
        yield from _mask_errors(self, self.mask)


class BidirectionalAttentionConfig(_Attention):
    """Multi-head attention to earlier and to later positions, for masked language modelling (Devlin et al. 2019)."""

    kind: Literal["bidirectional"] = key(..., "each position attends to all")
    mask: Literal["full", "document"] = key("full", "full: all positions; document: those of the same document")

    def errors(self) -> ConfigErrors:
        """Yield an error for each option that the mask or the backend excludes."""
        return _mask_errors(self, self.mask)


def _mask_errors(config: _Attention, mask: str) -> ConfigErrors:
    if config.restart_positions and mask not in DOCUMENT_MASKS:
        yield config_error(
            "restart_positions", f"needs a mask that tells documents ({', '.join(DOCUMENT_MASKS)}), not {mask}"
        )
    if config.backend == "flash" and (config.window is not None or mask not in ("causal", "full")):
        reason = "a window" if config.window is not None else f"mask: {mask}"
        yield config_error("backend", f"PyTorch's FlashAttention knows no {reason}; set backend to auto, sdpa or flex")
    if config.backend == "flex" and config.dropout:
        yield config_error("backend", "FlexAttention cannot drop attention weights; set dropout: 0 or another backend")


AttentionConfig = Annotated[CausalAttentionConfig | BidirectionalAttentionConfig, Field(discriminator="kind")]


Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "leaky_relu", "silu", "tanh", "sigmoid", "none"]


class _FeedForward(ConfigSection):
    """The keys of both kinds besides their activation: width, biases, dropout, norm."""

    width: int | None = key(None, "hidden size; from `factor` when not given", unit="features", ge=1)
    factor: float | None = key(
        None,
        "hidden size over the model's width; when neither is given 4 for plain, and for gated 8/3 up to a multiple of "
        "64",
        unit="factor",
        gt=0,
    )
    bias: bool = key(False, "biases in the projections")
    norm: PlaceNormConfig = key(ModelNormConfig(), "norm around the network")
    dropout: float = key(0.0, "dropout on the hidden features", unit="probability", ge=0, le=1)
    input_dropout: float = key(0.0, "dropout on what enters the network", unit="probability", ge=0, le=1)

    def errors(self) -> ConfigErrors:
        """Yield an error for a width that is said twice."""
        if self.width is not None and self.factor is not None:
            yield config_error("factor", "give width or factor, not both")


class GatedFeedForwardConfig(_FeedForward):
    """A gated feed-forward network (Shazeer 2020): down(activation(gate(x)) * up(x)); with silu it is SwiGLU."""

    kind: Literal["gated"] = key("gated", "gated: down(activation(gate(x)) * up(x))")
    activation: Activation = key("silu", "function of the gate")


class PlainFeedForwardConfig(_FeedForward):
    """The feed-forward network of the first transformers: down(activation(up(x)))."""

    kind: Literal["plain"] = key(..., "plain: down(activation(up(x)))")
    activation: Activation = key("gelu", "function between the two projections")


FeedForwardConfig = Annotated[GatedFeedForwardConfig | PlainFeedForwardConfig, Field(discriminator="kind")]


class NormalInitConfig(ConfigSection):
    """Normal weights and zero biases, as GPT-2."""

    kind: Literal["normal"] = key("normal", "normally distributed weights")
    std: float = key(0.02, "standard deviation", unit="weight", gt=0)
    scale_residual: bool = key(
        True, "divide by sqrt(2 · layers) where a projection writes into the residual stream (Radford et al. 2019)"
    )


class XavierInitConfig(ConfigSection):
    """Uniform weights by Glorot and Bengio (2010); biases are zero, embeddings normal with 0.02."""

    kind: Literal["xavier"] = key(..., "Xavier uniform")
    gain: float = key(1.0, "factor on the bound", unit="factor", gt=0)


class KaimingInitConfig(ConfigSection):
    """Normal weights by He et al. (2015); biases are zero, embeddings normal with 0.02."""

    kind: Literal["kaiming"] = key(..., "Kaiming normal")
    mode: Literal["fan_in", "fan_out"] = key("fan_in", "keep the variance of the forward or of the backward pass")
    nonlinearity: Literal["gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear"] = key(
        "gelu", "function whose gain is used; gelu and silu have relu's"
    )


class NoInitConfig(ConfigSection):
    """The weights that PyTorch's modules start with by themselves."""

    kind: Literal["none"] = key(..., "PyTorch's own")


class PretrainedInitConfig(ConfigSection):
    """The weights of a trained model: a run of Quintet's, or a checkpoint of Hugging Face's of a family that the
    transformer can express (`quintet import` writes the run file's part for one)."""

    kind: Literal["pretrained"] = key(..., "the weights of a trained model")
    path: str = key(..., "run folder, folder of a Hugging Face checkpoint, or its name on the hub", min_length=1)
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")


InitConfig = Annotated[
    NormalInitConfig | XavierInitConfig | KaimingInitConfig | NoInitConfig | PretrainedInitConfig,
    Field(discriminator="kind"),
]


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
    embedding: EmbeddingConfig = key(TokenEmbeddingConfig(), "from ids to features")
    head: HeadConfig = key(LinearHeadConfig(), "from the last features to logits")
    init: InitConfig = key(NormalInitConfig(), "how weights start")
    embedding_scale: float = key(1.0, "factor on the embedding of a token", unit="factor", gt=0)
    embedding_dropout: float = key(0.0, "dropout on the embedding", unit="probability", ge=0, le=1)
    residual_dropout: float = key(
        0.0, "dropout on what attention and feed-forward add to the residual", unit="probability", ge=0, le=1
    )
    tie_embeddings: bool = key(True, "one matrix for embedding and head (Press and Wolf 2017)")
    tie_feedforward: bool = key(False, "one feed-forward network for all blocks, each with its own norm")
    tie_attention_output: bool = key(False, "one output projection of the attention for all blocks")
    sharing: SharingConfig | None = key(None, "matrices that some blocks share; each block has its own when not given")

    def errors(self) -> ConfigErrors:
        """Yield an error for each part that does not fit the others."""
        attention = self.attention
        if attention.head_dim is None and self.width % self.heads:
            yield config_error(
                "attention.heads",
                f"{self.heads} heads do not divide model.width = {self.width}; set model.attention.head_dim as well",
            )
        elif isinstance(self.position, RopeConfig):
            if self.position.fraction == 1 and self.head_dim % 2:
                message = f"rotary positions need an even head size, not {self.head_dim}"
                if attention.head_dim is None:
                    message += f", which is model.width = {self.width} over {self.heads} heads"
                yield config_error("attention.heads" if attention.head_dim is None else "attention.head_dim", message)
            elif not self.rotary_dim:
                yield config_error(
                    "position.fraction", f"turns not even one pair of the {self.head_dim} features of a head"
                )
        if self.heads % self.kv_heads:
            yield config_error("attention.kv_heads", f"{self.kv_heads} does not divide the {self.heads} query heads")
        if attention.qk_norm != "none" and self.norm.kind == "none":
            yield config_error("attention.qk_norm", "takes its kind from model.norm, which is none")
        if self.block == "parallel" and self.feedforward.norm.kind != "model":
            yield config_error("feedforward.norm", "a parallel block has one norm; set attention.norm or norm")
        if self.sharing is not None:
            yield from self.sharing.misfits(self.layers, self._tied)
        if self.tie_embeddings and self.byte_parts:
            part = "embedding" if isinstance(self.embedding, ByteEmbeddingConfig) else "head"
            yield config_error("tie_embeddings", f"a byte-level {part} has no row an id to share; set it to false")

    def how(self, part: SharedPart, block: int) -> How:
        """The way in which ``block``, counted from 0, has its ``part``."""
        if self._tied.get(part, False):
            return "same"
        return "own" if self.sharing is None else self.sharing.how(part, block, self.layers)

    def shared_how(self, part: SharedPart) -> How:
        """The way in which those blocks that share ``part`` have it; own where none does."""
        ways = [self.how(part, block) for block in range(self.layers)]
        return "low_rank" if "low_rank" in ways else "same" if "same" in ways else "own"

    def difference_bias(self, part: SharedPart) -> bool:
        """True where the low-rank differences of ``part`` have biases that the part itself has not."""
        return self.sharing is not None and self.sharing.bias and self.shared_how(part) == "low_rank"

    @property
    def _tied(self) -> dict[SharedPart, bool]:
        return {"feedforward": self.tie_feedforward, "attention_output": self.tie_attention_output}

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
    def qkv_width(self) -> int:
        """Features of queries, keys and values of all heads."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Features of one head that are turned."""
        if not isinstance(self.position, RopeConfig):
            return 0
        # Written as a fraction, 32 of 80 features is 0.4, whose product with 80 may fall just short of 32.
        return math.floor(self.position.fraction * self.head_dim / 2 + 1e-6) * 2

    @property
    def learns_positions(self) -> bool:
        """True where a learned vector a position is added to the embedding."""
        return self.position.kind == "learned" or (isinstance(self.position, RopeConfig) and self.position.learned)

    @property
    def output_bias(self) -> bool:
        """True where the attention's output projection has a bias."""
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
    def byte_parts(self) -> tuple[ByteEmbeddingConfig | ByteHeadConfig, ...]:
        """The embedding and the head where they are byte-level."""
        ends = (self.embedding, self.head)
        return tuple(part for part in ends if isinstance(part, ByteEmbeddingConfig | ByteHeadConfig))

    @property
    def tells_documents(self) -> bool:
        """True where the mask depends on where documents end."""
        return self.attention.mask in DOCUMENT_MASKS

    @property
    def tells_prompts(self) -> bool:
        """True where the mask depends on where the prompts of documents end."""
        return self.attention.mask == "prefix"

    def _norm_of(self, own: PlaceNormConfig) -> NormConfig:
        return self.norm if isinstance(own, ModelNormConfig) else own

    def rows(self, vocab_size: int) -> int:
        """Rows of the embedding for ``vocab_size`` ids."""
        return -(-vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class LoraConfig(ConfigSection):
    """Low-rank adapters (Hu et al. 2022) beside frozen weights, through peft."""

    rank: int = key(16, "rank of the update of a matrix", unit="dimensions", ge=1)
    alpha: float = key(32.0, "the update is scaled by alpha / rank", unit="factor", gt=0)
    dropout: float = key(0.0, "dropout on what enters the adapters", unit="probability", ge=0, le=1)
    targets: tuple[str, ...] | None = key(
        ("all-linear",),
        "names of the modules that get one; all-linear stands for all but the head, null for those that peft takes for "
        "the model's family",
        min_length=1,
    )


class HuggingFaceConfig(ConfigSection):
    """Any causal language model of the transformers library, trained as it is (needs the `hf` extra)."""

    kind: Literal["huggingface"] = key(..., "a model of the transformers library")
    name_or_path: str = key(
        ...,
        "folder of the checkpoint, its name on the hub, or with `pretrained: false` a type of models, such as gpt2",
        min_length=1,
    )
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")
    pretrained: bool = key(True, "load its weights; false starts from random ones, with its configuration alone")
    config: dict[str, Any] = key({}, "values that replace those of the checkpoint's config.json")
    context_length: int | None = key(
        None, "most positions the model is used for; data.sequence_length when not given", unit="tokens", ge=2
    )
    freeze: Literal["none", "core"] = key(
        "none", "core: only the embedding and the head are trained, what lies between them stays as it is"
    )
    lora: LoraConfig | None = key(None, "train adapters instead of the weights themselves")
    attention_backend: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = (
        key("auto", "what computes its attention; auto leaves the choice to transformers")
    )
    gradient_checkpointing: bool = key(
        False, "keep only what enters each layer and compute the rest again in the backward pass"
    )
    dropout: float | None = key(
        None, "rate of all its dropouts; as its configuration says when not given", unit="probability", ge=0, le=1
    )
    trust_remote_code: bool = key(False, "run the Python code that lies beside the checkpoint")

    other_base: bool = key(
        False, "take the checkpoint although it is not the one, by its digest, that the run began with"
    )
    documents: bool = key(False, "documents packed in one sequence do not see one another, and positions restart")

    @property
    def tells_documents(self) -> bool:
        """True where the mask depends on where documents end."""
        return self.documents

    @property
    def tells_prompts(self) -> bool:
        """False, for these models see backwards only, whatever the prompts of documents."""
        return False

    def errors(self) -> ConfigErrors:
        """Yield an error for weights that are frozen twice."""
        if self.lora is not None and self.freeze != "none":
            yield config_error("freeze", "lora freezes all weights but its own already; leave freeze out")


ModelConfig = Annotated[TransformerConfig | HuggingFaceConfig, Field(discriminator="kind")]
