"""The keys of an STLM file for the model and its tokenizer."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import create_model

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.stlm import values
from quintet.config.dialects.stlm.values import EXPERIMENT, OLDEST
from quintet.config.dialects.types import Count, FalseIsZero, Fraction, Listed, NotNegative, Positive, Text
from quintet.config.section import key

Dropout = Annotated[Fraction, FalseIsZero]
Names = Annotated[tuple[Text, ...], Listed]
S = TypeVar("S", bound=DialectSection)
_CORE = ("model.kind", "model.sharing", "model.tie_feedforward", "model.tie_attention_output")
_NORMS = ("model.norm", "model.feedforward.norm")
_BYTES = ("model.embedding.bytes", "model.head.bytes", "train.clip_norm", "optimizer.eps")


def unlisted(default: Any, help: str, **more: Any) -> Any:
    """A key that STLM's files have and its document does not."""
    return key(default, help, documented=False, **more)


def refuses(names: str, help: str = "experiment", reason: str = EXPERIMENT) -> Callable[[type[S]], type[S]]:
    """Add the keys ``names``, which are refused for ``reason``, to a section."""

    def add(section: type[S]) -> type[S]:
        keys: Any = {name: (Any, unlisted(None, help, unsupported=reason)) for name in names.split()}
        return create_model(section.__name__, __base__=section, __doc__=section.__doc__, **keys)

    return add


def _lm_head(name: str) -> tuple[str, str]:
    """The paths of a key of the head in older files."""
    return f"model.lm_head.{name}", f"model.lm_head.lm_head_{name}"


def _embedder(*names: str) -> tuple[str, ...]:
    """The paths of a key of the embedding in older files."""
    return tuple(f"model.embedder.{name}" for name in names)


@refuses("num_experts top_k n_experts lora_rank lora_alpha nblocks leaf_width depth config init_config")
class FeedForwardNetwork(DialectSection):
    """The feed-forward network of a block."""

    nestings = ("model.core_model.ffn", "model.ffn.params")

    ffn_type: values.FeedForward = key(
        "generic", "generic: two layers; silu_ffn: a third one as a gate", to="model.feedforward.kind", aliases="name"
    )
    ffn_dim: Positive | None = key(None, "feed-forward dimension", to="model.feedforward.width")
    bias: bool = key(False, "biases of its layers, and of its layer_norm", to="model.feedforward.bias")
    ffn_dropout: Dropout = key(0.0, "dropout on its input", to="model.feedforward.input_dropout", aliases="dropout")
    activation: values.Activation = key("gelu", "generic: function between layers", to="model.feedforward.activation")
    normalization: values.Norm = key("rms_norm", "norm before it", affects=_NORMS)


class AttentionLayer(DialectSection):
    """The attention of a block."""

    nestings = ("model.core_model.attn", "model.attn.params")

    attn_type: values.Attention = key(
        "causal", "which positions a position attends to", affects="model.attention.kind", aliases="name"
    )
    num_kv_heads: Positive | None = key(None, "key and value heads: the smaller", affects="model.attention.kv_heads")
    num_q_heads: Positive | None = key(
        None,
        "query heads: the larger; else num_kv_heads",
        affects=("model.attention.heads", "model.attention.head_dim"),
        aliases="num_heads",
    )
    group_size: Positive | None = unlisted(None, "query heads per key head", affects="model.attention.kv_heads")
    is_causal: bool | None = unlisted(None, "causal or bidirectional", affects="model.attention.kind")
    head_dim: Positive | None = unlisted(None, "size of a head; hidden_dim / heads", to="model.attention.head_dim")
    use_rope: bool | None = unlisted(
        None, "rotary positions", unsupported="set positional_encoding_type: rope instead", noop_values=False
    )
    depth: Any = unlisted(None, "number of the block", no_effect="only differentiable_attention reads it")
    bias: bool = key(False, "biases of its projections, and of its layer_norm", to="model.attention.bias")
    attn_dropout: Dropout = key(0.0, "dropout on its input", to="model.attention.input_dropout", aliases="dropout")
    normalization: values.Norm = key("rms_norm", "norm before it", affects=("model.norm", "model.attention.norm"))


@refuses(
    "context_window num_heads pooling_layers pooling_dims "
    "pooling_pct_per_layer pct_pool_per_layer standard_ffn_block standard_attn_block"
)
class Embedder(DialectSection):
    """The embedding in older files; the keys that are not experiments are aliases in `model`."""


@refuses("latent_decoded_into num_layers standard_ffn_block standard_attn_block")
class LmHead(DialectSection):
    """The head in older files; the keys that are not experiments are aliases in `model`."""


@refuses(
    "lm_head_num_classes latent_dim "
    "byte_hidden global_byte_projection chunk_len_loss_weight "
    "chunk_len_penalty max_chunk_length max_num_chunks target_chunk_len num_byte_decoder_layers "
    "num_delimiter_layers"
)
@refuses("num_heads ffn_dim dropout bias positional_encoder vocab_size_old", "a first model", OLDEST)
class Model(DialectSection):
    """The model and its tokenizer."""

    nestings = ("model.core_model",)

    core_model_type: values.Core = key(
        ...,
        "generic: a transformer; hf_core: a model from Hugging Face; others: blocks share parts",
        affects=_CORE,
        aliases="model",
    )
    k_interior_layers: Count | None = unlisted(
        None, "sharing: blocks of their own at the end, and one more at the start", affects="model.sharing"
    )
    lora_rank: Positive | None = unlisted(None, "sharing: rank of a block's own part", affects="model.sharing")
    lora_alpha: float | None = unlisted(
        None, "sharing: lora_alpha / lora_rank scales that part; 1 when not given", gt=0, affects="model.sharing"
    )
    num_layers: Positive | None = key(None, "blocks", to="model.layers", aliases="depth")
    hidden_dim: Positive | None = key(None, "size of the hidden layers", to="model.width")
    norm_bias: bool | None = unlisted(None, "biases of blocks' layer_norm; else attn.bias, ffn.bias", affects=_NORMS)
    embedding_dim: Positive | None = unlisted(
        None,
        "width of the embedding: hidden_dim, or with byte_level byte_embedding_dim",
        affects=("model.width", "model.embedding.width", "model.head.width"),
    )
    context_window: int = key(
        ..., "length of a sample, and most positions", ge=2, to="data.sequence_length", affects="model.context_length"
    )
    vocab_size: int | None = key(
        None,
        "rows of embedding and head, at least as many as the tokenizer has ids; also the ids of a tokenizer to train",
        ge=257,
        affects=("model.vocab_size", "tokenizer.vocab_size"),
        aliases="pooling_vocab_size",
    )
    ffn_weight_tying: bool = key(False, "one feed-forward network for all blocks", to="model.tie_feedforward")
    c_proj_weight_tying: bool = key(
        False, "one output of attention for all blocks", to="model.tie_attention_output", aliases="cproj_weight_tying"
    )
    freeze_core: bool = key(True, "hf_core: train only embedding and head", affects="model.freeze", aliases="freeze")
    model_string: Text | None = unlisted(
        None, "hf_core: folder or hub name", affects=("model.name_or_path", "tokenizer.path"), aliases="hf_model_name"
    )
    flash_attention: bool | None = unlisted(
        None, "FlashAttention; false leaves the choice", affects=("model.attention.backend", "model.attention_backend")
    )
    use_lora: bool | None = unlisted(None, "hf_core: train adapters of rank 8", affects="model.lora")
    lora_targets: tuple[Text, ...] | None = unlisted(None, "modules with an adapter", affects="model.lora.targets")
    embedding_model_type: values.Embedding = key(
        "generic",
        "learned, or the checkpoint's; byte_level mixes the bytes of each token",
        affects=("model.kind", "model.embedding"),
        aliases=_embedder("embedding_model_type"),
    )
    byte_tokenizer_type: Literal["bpe"] = unlisted(
        "bpe",
        "byte_level",
        aliases=("byte_tokenizer", *_embedder("byte_tokenizer_type")),
        no_effect="a token is spelled with its own bytes",
    )
    byte_vocab_size: Positive = unlisted(258, "byte_level: symbols", affects=("model.embedding", "model.head"))
    byte_context_window: int = unlisted(
        12, "byte_level: bytes of a token", ge=4, affects=_BYTES, aliases=_embedder("byte_context_window")
    )
    byte_embedding_dim: Positive = unlisted(
        128, "byte_level: features of a byte", affects=("model.embedding.width", "model.head.width")
    )
    embedding_weight_tying: bool = key(True, "one matrix for embedding and head", to="model.tie_embeddings")
    embedding_dropout: Dropout = key(
        0.0, "dropout on the embedding", to="model.embedding_dropout", aliases=_embedder("dropout", "embedding_dropout")
    )
    tokenizer_type: values.Tokenizer | None = key(
        None,
        "tokenizer",
        affects="tokenizer.kind",
        aliases=("tokenizer", "pooling_tokenizer", *_embedder("tokenizer_type")),
    )
    tokenizer_dataset_name: Names | None = key(
        None,
        "bpe: datasets to train it on, named as in trainer.dataset, which it is when not given",
        affects="tokenizer.sources",
        aliases=("tokenizer_dataset_names", "tokenizer_dataset", *_embedder("dataset_name")),
    )
    tokenizer_simplify: bool = key(
        True, "bpe: plain letters, each digit a token", affects="tokenizer.simplify", aliases="tokenizer_simplify_data"
    )
    tokenizer_num_reserved_tokens: Count = unlisted(0, "bpe: unused ids of vocab_size", affects="tokenizer.vocab_size")
    lm_head_type: values.Head = key(
        "generic",
        "norm and matrix, or the checkpoint's; byte_level predicts the bytes of the next token",
        affects=("model.kind", "model.head", "train.clip_norm"),
        aliases=("model_head_type", *_lm_head("type")),
    )
    lm_head_normalization: values.Norm = key(
        "rms_norm",
        "norm before the head",
        affects=("model.norm", "model.head.norm"),
        aliases=("model_head_norm", *_lm_head("normalization")),
    )
    lm_head_bias: bool = key(False, "biases of the head and its norm", to="model.head.bias", aliases=_lm_head("bias"))
    lm_head_dropout: Dropout = key(
        0.0, "dropout on the input of the head's matrix", to="model.head.dropout", aliases=_lm_head("dropout")
    )
    model_shell_type: values.Shell = key(
        "standard",
        "how embedding, core and head are put together; byte_shell also reconstructs the bytes of a token",
        affects=("model.kind", "model.head.reconstruction"),
    )
    positional_encoding_type: values.Position | None = key(
        None,
        "how the model knows positions",
        affects="model.position",
        aliases=("embedding_positional_encoding", "model.attn.pos_enc_cfg.positional_encoding_type"),
        null="none",
    )
    initialization_fn: values.Initialization = key(
        "kaiming", "initialization, except of hf_core; none: PyTorch's", to="model.init.kind", null="none"
    )
    gain: NotNegative = key(1.0, "xavier: factor on the weights", affects="model.init.gain")
    mode: Literal["fan_in", "fan_out"] = key(
        "fan_in", "kaiming: keep the variance of the forward or of the backward pass", affects="model.init.mode"
    )
    nonlinearity: values.Gain = key("gelu", "kaiming: function whose gain is used", affects="model.init.nonlinearity")
    ffn: FeedForwardNetwork
    attn: AttentionLayer
    attention_type: Literal["standard"] | None = unlisted(
        None, "attention", aliases="model.attn.attention_type", no_effect="STLM accepts no other value"
    )
    checkpoint_path: Text | None = unlisted(
        None,
        "checkpoint to start from",
        unsupported="a checkpoint of STLM is a pickle, which cannot be read safely; export the model to a Hugging Face "
        "folder and name it in quintet: {model: {init: {kind: pretrained, path: FOLDER}}}",
    )
    embedder: Embedder
    lm_head: LmHead
