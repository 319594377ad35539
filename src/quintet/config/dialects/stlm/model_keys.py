"""The keys of `model`: the flat ones of the document, and where older and newer files have them."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.stlm.words import GAINS, NORMS, TOKENIZERS, named, names
from quintet.config.dialects.table import REQUIRED, Key
from quintet.config.dialects.values import Value, choice, flag, listed, number, text, whole


def _core(path: str, value: Value, help: str, **more: Any) -> Key:
    """A key of the core model; older files have it in ``model.core_model``."""
    aliases = (f"model.core_model.{path}", *more.pop("aliases", ()))
    return Key(f"model.{path}", value, help, aliases=aliases, **more)


MODEL = (
    _core(
        "core_model_type",
        named(
            {"generic": "generic", "hf_core": "hf_core"},
            (
                *("ffn_lora_sharing", "ffn_lora_sharing_moe", "weight_sharing", "generic_ffn_sharing", "conv"),
                *("next_thought_baseline", "pass_through", "passthrough", "cascade"),
            ),
        ),
        "generic: blocks of attention and feed-forward; hf_core: a model of Hugging Face's, with its own embedding, "
        "head and tokenizer",
        default=REQUIRED,
        affects=("model.kind",),
    ),
    _core("num_layers", whole(1), "blocks", affects=("model.layers",)),
    Key("model.hidden_dim", whole(1), "size of the hidden layers", affects=("model.width",)),
    Key(
        "model.context_window",
        whole(2),
        "length of a sample, and most positions",
        default=REQUIRED,
        affects=("data.sequence_length", "model.context_length"),
    ),
    Key(
        "model.vocab_size",
        whole(257),
        "ids of the tokenizer that bpe trains; rows of embedding and head, at least as many as there are ids",
        affects=("model.vocab_size", "tokenizer.vocab_size"),
    ),
    _core(
        "ffn_weight_tying",
        flag(),
        "one feed-forward network for all blocks",
        default=False,
        affects=("model.tie_feedforward",),
    ),
    _core(
        "c_proj_weight_tying",
        flag(),
        "one output projection of the attention for all blocks",
        default=False,
        aliases=("model.cproj_weight_tying", "model.core_model.cproj_weight_tying"),
        affects=("model.tie_attention_output",),
    ),
    Key(
        "model.freeze_core",
        flag(),
        "hf_core: train embedding and head alone",
        default=True,
        aliases=("model.freeze", "model.core_model.freeze_core", "model.core_model.freeze"),
        affects=("model.freeze",),
    ),
    Key(
        "model.model_string",
        text(),
        "hf_core: folder of the checkpoint, or its name on the hub",
        aliases=("model.hf_model_name", "model.core_model.model_string"),
        documented=False,
        affects=("model.name_or_path", "tokenizer.path"),
    ),
    Key(
        "model.flash_attention",
        flag(),
        "FlashAttention; false leaves the choice to Quintet, or to transformers",
        documented=False,
        affects=("model.attention.backend", "model.attention_backend"),
    ),
    Key("model.use_lora", flag(), "hf_core: train adapters of rank 8", documented=False, affects=("model.lora",)),
    Key(
        "model.lora_targets",
        listed(text()),
        "modules that get an adapter",
        documented=False,
        affects=("model.lora.targets",),
    ),
    Key(
        "model.embedding_model_type",
        named({"generic": "generic", "hf_embedder": "hf_embedder"}, ("byte_level", "hierarchical", "byte_patch")),
        "generic: learned vectors; hf_embedder: that of the checkpoint of hf_core",
        default="generic",
        aliases=("model.embedder.embedding_model_type",),
        affects=("model.kind",),
    ),
    Key(
        "model.embedding_weight_tying",
        flag(),
        "one matrix for embedding and head",
        default=True,
        affects=("model.tie_embeddings",),
    ),
    Key(
        "model.embedding_dropout",
        number(0, below=1, off=0),
        "dropout on the embedding",
        default=0.0,
        aliases=("model.embedder.dropout", "model.embedder.embedding_dropout"),
        affects=("model.embedding_dropout",),
    ),
    Key(
        "model.tokenizer_type",
        choice(by=TOKENIZERS, any_case=True),
        "tokenizer",
        aliases=("model.embedder.tokenizer_type",),
        affects=("tokenizer.kind",),
    ),
    Key(
        "model.tokenizer_dataset_name",
        names(),
        "bpe: dataset to train it on, one of those of trainer.dataset or a path; trainer.dataset when not given",
        aliases=("model.tokenizer_dataset_names", "model.embedder.dataset_name"),
        affects=("tokenizer.sources",),
    ),
    Key(
        "model.tokenizer_simplify",
        flag(),
        "bpe: leave foreign characters out, and make every digit a token",
        default=True,
        aliases=("model.tokenizer_simplify_data",),
        affects=("tokenizer.simplify",),
    ),
    Key(
        "model.tokenizer_num_reserved_tokens",
        whole(0),
        "bpe: ids of vocab_size that no text has",
        default=0,
        documented=False,
        affects=("tokenizer.vocab_size",),
    ),
    Key(
        "model.lm_head_type",
        named(
            {"generic": "generic", "hf_head": "hf_head"},
            ("byte_level", "latent_2_seq", "byte_patch", "classification", "attention"),
        ),
        "generic: norm, dropout, one matrix; hf_head: that of the checkpoint of hf_core",
        default="generic",
        aliases=("model.lm_head.lm_head_type",),
        affects=("model.kind",),
    ),
    Key(
        "model.lm_head_normalization",
        choice(by=NORMS, any_case=True),
        "norm before the head",
        default="rms",
        aliases=("model.lm_head.normalization", "model.lm_head.lm_head_normalization"),
        affects=("model.norm", "model.head.norm"),
    ),
    Key(
        "model.lm_head_bias",
        flag(),
        "bias of the head, and of its layer_norm",
        default=False,
        aliases=("model.lm_head.bias", "model.lm_head.lm_head_bias"),
        affects=("model.head.bias",),
    ),
    Key(
        "model.lm_head_dropout",
        number(0, below=1, off=0),
        "dropout on what enters the head's matrix",
        default=0.0,
        aliases=("model.lm_head.dropout", "model.lm_head.lm_head_dropout"),
        affects=("model.head.dropout",),
    ),
    Key(
        "model.model_shell_type",
        named({"standard": "standard"}, ("byte_shell", "byte_autoencoder_shell", "byte_enc_shell", "cascade")),
        "how embedding, core and head are put together",
        default="standard",
        affects=("model.kind",),
    ),
    Key(
        "model.positional_encoding_type",
        choice(by={"learned": "learned", "sincos": "sinusoidal", "rope": "rope", "none": "none"}, any_case=True),
        "how a position is told",
        aliases=("model.embedding_positional_encoding", "model.attn.pos_enc_cfg.positional_encoding_type"),
        null="none",
        affects=("model.position",),
    ),
    Key(
        "model.initialization_fn",
        choice("xavier", "kaiming", "none", any_case=True),
        "how weights start; none: as PyTorch does it. Those of hf_core are never touched",
        default="kaiming",
        null="none",
        affects=("model.init",),
    ),
    Key("model.gain", number(0), "xavier: factor on the weights", default=1.0, affects=("model.init.gain",)),
    Key(
        "model.mode",
        choice("fan_in", "fan_out"),
        "kaiming: keep the variance of the forward or of the backward pass",
        default="fan_in",
        affects=("model.init.mode",),
    ),
    Key(
        "model.nonlinearity",
        choice(by=GAINS, any_case=True),
        "kaiming: function whose gain is used",
        default="gelu",
        affects=("model.init.nonlinearity",),
    ),
)
