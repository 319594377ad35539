"""The section `model`: Quintet's own transformer, built from parts, or a model of Hugging Face's transformers."""

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
from quintet.config.norm import ModelNormConfig, NoNormConfig, NormConfig, PartNormConfig, RMSNormConfig
from quintet.config.position import PositionConfig, RopeConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.sharing import How, SharedPart, SharingConfig

DOCUMENT_MASKS = ("causal_document", "document", "prefix")


class _Attention(ConfigSection):
    """The keys of both kinds of attention."""

    heads: int | None = key(None, "query heads; one per 64 features of the width when not given", unit="heads", ge=1)
    kv_heads: int | None = key(None, "key and value heads; as many as `heads` when not given", unit="heads", ge=1)
    head_dim: int | None = key(None, "size of a head; width / heads when not given", unit="features", ge=1)
    bias: bool = key(False, "biases in the projections to queries, keys and values")
    output_bias: bool | None = key(None, "a bias in the output projection; as `bias` when not given")
    qk_norm: Literal["none", "head", "projection"] = key(
        "none",
        "norm of queries and keys, over each head or over the whole projection, with the kind and the eps of "
        "model.norm",
    )
    scale: float | None = key(
        None, "factor on the attention scores; 1 / sqrt(head_dim) when not given", unit="factor", gt=0
    )
    window: int | None = key(
        None,
        "positions that a position attends to on each side at most, including itself; all when not given",
        unit="positions",
        ge=1,
    )
    restart_positions: bool = key(False, "positions restart at each document, with a mask that separates documents")
    norm: PartNormConfig = key(ModelNormConfig(), "norm around the attention")
    dropout: float = key(0.0, "dropout on the attention weights", unit="probability", ge=0, le=1)
    input_dropout: float = key(0.0, "dropout on the input of the attention", unit="probability", ge=0, le=1)
    backend: Literal["auto", "sdpa", "flash", "flex"] = key(
        "auto",
        "sdpa: PyTorch's scaled_dot_product_attention with the kernel that it chooses; flash: the same, only with "
        "FlashAttention; flex: FlexAttention; auto: the fastest for the mask and the device",
    )


class CausalAttentionConfig(_Attention):
    """Multi-head attention to earlier positions (Vaswani et al. 2017). With fewer key and value heads it is
    grouped-query attention (Ainslie et al. 2023), with one multi-query attention (Shazeer 2019)."""

    kind: Literal["causal"] = key("causal", "each position attends to itself and to earlier positions")
    mask: Literal["causal", "causal_document", "prefix"] = key(
        "causal",
        "causal: all earlier positions; causal_document: those of the same document; prefix: as causal_document, and "
        "the prompt of a document (the tokens before the first that counts in the loss) attends to all of itself",
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each key that the mask or the backend excludes."""
        if self.mask == "prefix" and self.window is not None:
            yield config_error("window", "cannot be combined with mask: prefix; remove one of the two")
        yield from _mask_errors(self, self.mask)


class BidirectionalAttentionConfig(_Attention):
    """Multi-head attention to earlier and to later positions, for masked language modelling (Devlin et al. 2019)."""

    kind: Literal["bidirectional"] = key(..., "each position attends to all positions")
    mask: Literal["full", "document"] = key("full", "full: all positions; document: those of the same document")

    def errors(self) -> ConfigErrors:
        """Yield an error for each key that the mask or the backend excludes."""
        return _mask_errors(self, self.mask)


def _mask_errors(config: _Attention, mask: str) -> ConfigErrors:
    if config.restart_positions and mask not in DOCUMENT_MASKS:
        yield config_error(
            "restart_positions", f"needs a mask that separates documents ({', '.join(DOCUMENT_MASKS)}), not {mask}"
        )
    if config.backend == "flash" and (config.window is not None or mask not in ("causal", "full")):
        reason = "a window" if config.window is not None else f"mask: {mask}"
        yield config_error(
            "backend", f"PyTorch's FlashAttention does not support {reason}; set backend to auto, sdpa or flex"
        )
    if config.backend == "flex" and config.dropout:
        yield config_error(
            "backend", "FlexAttention has no dropout on attention weights; set dropout: 0 or another backend"
        )


AttentionConfig = Annotated[CausalAttentionConfig | BidirectionalAttentionConfig, Field(discriminator="kind")]


Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "leaky_relu", "silu", "tanh", "sigmoid", "none"]


class _FeedForward(ConfigSection):
    """The keys of both kinds of feed-forward network."""

    width: int | None = key(None, "hidden size; computed from `factor` when not given", unit="features", ge=1)
    factor: float | None = key(
        None,
        "hidden size over the model's width; when neither is given, 4 for plain, and 8/3 rounded up to a multiple of "
        "64 features for gated",
        unit="factor",
        gt=0,
    )
    bias: bool = key(False, "biases in the projections")
    norm: PartNormConfig = key(ModelNormConfig(), "norm around the network")
    dropout: float = key(0.0, "dropout on the hidden features", unit="probability", ge=0, le=1)
    input_dropout: float = key(0.0, "dropout on the input of the network", unit="probability", ge=0, le=1)

    def errors(self) -> ConfigErrors:
        """Yield an error if both width and factor are given."""
        if self.width is not None and self.factor is not None:
            yield config_error("factor", "give width or factor, not both")


class GatedFeedForwardConfig(_FeedForward):
    """A gated feed-forward network (Shazeer 2020): down(activation(gate(x)) * up(x)); with silu it is SwiGLU."""

    kind: Literal["gated"] = key("gated", "gated: down(activation(gate(x)) * up(x))")
    activation: Activation = key("silu", "activation of the gate")


class PlainFeedForwardConfig(_FeedForward):
    """The feed-forward network of the first transformer (Vaswani et al. 2017): down(activation(up(x)))."""

    kind: Literal["plain"] = key(..., "plain: down(activation(up(x)))")
    activation: Activation = key("gelu", "activation between the two projections")


FeedForwardConfig = Annotated[GatedFeedForwardConfig | PlainFeedForwardConfig, Field(discriminator="kind")]


class NormalInitConfig(ConfigSection):
    """Normal weights and zero biases, as in GPT-2."""

    kind: Literal["normal"] = key("normal", "normally distributed weights")
    std: float = key(0.02, "standard deviation", unit="weight", gt=0)
    scale_residual: bool = key(
        True, "divide std by sqrt(2 · layers) for projections into the residual stream (Radford et al. 2019)"
    )


class XavierInitConfig(ConfigSection):
    """Uniform weights (Glorot and Bengio 2010); biases are zero, embeddings normal with 0.02."""

    kind: Literal["xavier"] = key(..., "Xavier uniform")
    gain: float = key(1.0, "factor on the bound", unit="factor", gt=0)


class KaimingInitConfig(ConfigSection):
    """Normal weights (He et al. 2015); biases are zero, embeddings normal with 0.02."""

    kind: Literal["kaiming"] = key(..., "Kaiming normal")
    mode: Literal["fan_in", "fan_out"] = key("fan_in", "keep the variance of the forward or of the backward pass")
    nonlinearity: Literal["gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear"] = key(
        "gelu", "activation whose gain is used; gelu and silu use relu's"
    )


class NoInitConfig(ConfigSection):
    """The default initialisation of PyTorch's modules."""

    kind: Literal["none"] = key(..., "PyTorch's own")


class PretrainedInitConfig(ConfigSection):
    """The weights of a trained model: a run of Quintet, or a Hugging Face checkpoint of a family that the transformer
    can express (`quintet import` writes the section `model` for it)."""

    kind: Literal["pretrained"] = key(..., "the weights of a trained model")
    path: str = key(..., "run folder, folder of a Hugging Face checkpoint, or its name on the hub", min_length=1)
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")


InitConfig = Annotated[
    NormalInitConfig | XavierInitConfig | KaimingInitConfig | NoInitConfig | PretrainedInitConfig,
    Field(discriminator="kind"),
]


class TransformerConfig(ConfigSection):
    """An embedding, blocks of attention and feed-forward network around a residual stream, and a head."""

    kind: Literal["transformer"] = key("transformer", "Quintet's own transformer")
    layers: int = key(6, "blocks", unit="blocks", ge=1)
    width: int = key(384, "size of the residual stream", unit="features", ge=1)
    vocab_size: int | None = key(
        None,
        "rows of the embedding, at least the tokenizer's ids; as many as those when not given",
        unit="ids",
        ge=1,
    )
    pad_vocab_size_multiple: int = key(
        1, "round the rows up to a multiple of this; the rows that are added are never predicted", unit="ids", ge=1
    )
    context_length: int | None = key(
        None, "largest number of positions of the model; data.sequence_length when not given", unit="tokens", ge=2
    )
    block: Literal["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"] = key(
        "pre_norm",
        "where the norms are. pre_norm: x + f(norm(x)); post_norm: norm(x + f(x)); output_norm: x + norm(f(x)); "
        "sandwich_norm: x + norm(f(norm(x))); parallel: x + attention(norm(x)) + feedforward(norm(x)), with one norm",
    )
    attention: AttentionConfig = key(CausalAttentionConfig(), "how positions exchange information")
    feedforward: FeedForwardConfig = key(GatedFeedForwardConfig(), "what each position computes by itself")
    norm: NormConfig = key(RMSNormConfig(), "norm of all parts that have no norm of their own")
    position: PositionConfig = key(RopeConfig(), "how the model knows positions")
    embedding: EmbeddingConfig = key(TokenEmbeddingConfig(), "from ids to features")
    head: HeadConfig = key(LinearHeadConfig(), "from the last features to logits")
    init: InitConfig = key(NormalInitConfig(), "initialisation of the weights")
    embedding_scale: float = key(1.0, "factor on the embedding of a token", unit="factor", gt=0)
    embedding_dropout: float = key(0.0, "dropout on the embedding", unit="probability", ge=0, le=1)
    residual_dropout: float = key(
        0.0, "dropout on the outputs of attention and feed-forward network", unit="probability", ge=0, le=1
    )
    tie_embeddings: bool = key(True, "one matrix for embedding and head (Press and Wolf 2017)")
    tie_feedforward: bool = key(False, "one feed-forward network for all blocks, each with its own norm")
    tie_attention_output: bool = key(False, "one output projection of the attention for all blocks")
    sharing: SharingConfig | None = key(None, "matrices that blocks share; each block has its own when not given")

    def errors(self) -> ConfigErrors:
        """Yield an error for each part that does not fit another."""
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
                    "position.fraction", f"rotates less than one pair of the {self.head_dim} features of a head"
                )
        if self.heads % self.kv_heads:
            yield config_error("attention.kv_heads", f"{self.kv_heads} does not divide the {self.heads} query heads")
        if attention.qk_norm != "none" and self.norm.kind == "none":
            yield config_error("attention.qk_norm", "uses model.norm, whose kind is none; set another kind")
        if self.block == "parallel" and self.feedforward.norm.kind != "model":
            yield config_error("feedforward.norm", "a parallel block has one norm; set attention.norm or norm")
        if self.sharing is not None:
            yield from self.sharing.misfits(self.layers, self._tied)
        if self.tie_embeddings and self.byte_parts:
            part = "embedding" if isinstance(self.embedding, ByteEmbeddingConfig) else "head"
            yield config_error("tie_embeddings", f"a byte-level {part} has no rows of ids to share; set it to false")

    def how(self, part: SharedPart, block: int) -> How:
        """How ``block``, counted from 0, has its ``part``: its own, shared or with a low-rank difference."""
        if self._tied.get(part, False):
            return "same"
        return "own" if self.sharing is None else self.sharing.how(part, block, self.layers)

    def shared_how(self, part: SharedPart) -> How:
        """How the blocks that share ``part`` have it; "own" if no blocks share it."""
        ways = [self.how(part, block) for block in range(self.layers)]
        return "low_rank" if "low_rank" in ways else "same" if "same" in ways else "own"

    def difference_bias(self, part: SharedPart) -> bool:
        """True if the low-rank differences of ``part`` have biases."""
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
        """Features of a head that are rotated."""
        if not isinstance(self.position, RopeConfig):
            return 0
        # 32 of 80 features are a fraction of 0.4, whose product with 80 may be just below 32.
        return math.floor(self.position.fraction * self.head_dim / 2 + 1e-6) * 2

    @property
    def learns_positions(self) -> bool:
        """True if a learned vector per position is added to the embedding."""
        return self.position.kind == "learned" or (isinstance(self.position, RopeConfig) and self.position.learned)

    @property
    def output_bias(self) -> bool:
        """True if the attention's output projection has a bias."""
        bias = self.attention.output_bias
        return self.attention.bias if bias is None else bias

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
        """The byte-level parts among embedding and head."""
        ends = (self.embedding, self.head)
        return tuple(part for part in ends if isinstance(part, ByteEmbeddingConfig | ByteHeadConfig))

    @property
    def tells_documents(self) -> bool:
        """True if the attention mask separates documents."""
        return self.attention.mask in DOCUMENT_MASKS

    @property
    def tells_prompts(self) -> bool:
        """True if the attention mask depends on the prompts of documents."""
        return self.attention.mask == "prefix"

    def _norm_of(self, own: PartNormConfig) -> NormConfig:
        return self.norm if isinstance(own, ModelNormConfig) else own

    def rows(self, vocab_size: int) -> int:
        """Rows of the embedding for ``vocab_size`` ids."""
        return -(-vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class LoraConfig(ConfigSection):
    """Low-rank adapters (Hu et al. 2022) of frozen weights, by the peft library."""

    rank: int = key(16, "rank of the update of a matrix", unit="dimensions", ge=1)
    alpha: float = key(32.0, "the update is scaled by alpha / rank", unit="factor", gt=0)
    dropout: float = key(0.0, "dropout on the input of the adapters", unit="probability", ge=0, le=1)
    targets: tuple[str, ...] | None = key(
        ("all-linear",),
        "names of the modules that get an adapter; all-linear: all linear modules except the head; null: peft's "
        "default for the model's family",
        min_length=1,
    )


class HuggingFaceConfig(ConfigSection):
    """Any causal language model of the transformers library, used as it is (needs the `hf` extra)."""

    kind: Literal["huggingface"] = key(..., "a model of the transformers library")
    name_or_path: str = key(
        ...,
        "folder of the checkpoint, its name on the hub, or, with `pretrained: false`, a model type such as gpt2",
        min_length=1,
    )
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")
    pretrained: bool = key(True, "load the weights; false takes only the configuration and starts from random weights")
    config: dict[str, Any] = key({}, "values that replace those of the checkpoint's config.json")
    context_length: int | None = key(
        None, "largest number of positions that are used; data.sequence_length when not given", unit="tokens", ge=2
    )
    freeze: Literal["none", "core"] = key(
        "none", "core: train only the embedding and the head, and freeze everything between them"
    )
    lora: LoraConfig | None = key(None, "train adapters instead of the weights themselves")
    attention_backend: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = (
        key("auto", "implementation of the attention; auto leaves the choice to transformers")
    )
    gradient_checkpointing: bool = key(
        False, "keep only the input of each layer and recompute the rest in the backward pass"
    )
    dropout: float | None = key(
        None, "rate of all dropouts; those of the model's configuration when not given", unit="probability", ge=0, le=1
    )
    trust_remote_code: bool = key(False, "run the Python code that comes with the checkpoint")
    other_base: bool = key(
        False, "continue although the digest of the checkpoint is not the one that the run started with"
    )
    documents: bool = key(
        False, "documents packed in one sequence do not attend to one another, and positions restart at each"
    )

    @property
    def tells_documents(self) -> bool:
        """True if the attention mask separates documents."""
        return self.documents

    @property
    def tells_prompts(self) -> bool:
        """False: these models have causal masks only."""
        return False

    def errors(self) -> ConfigErrors:
        """Yield an error for lora together with freeze."""
        if self.lora is not None and self.freeze != "none":
            yield config_error(
                "freeze", "cannot be combined with lora, which freezes all weights of the model; remove one of the two"
            )


ModelConfig = Annotated[TransformerConfig | HuggingFaceConfig, Field(discriminator="kind")]
