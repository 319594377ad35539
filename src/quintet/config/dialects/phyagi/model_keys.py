"""PhyAGI's keys of models."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.values import window
from quintet.config.dialects.table import SPLIT_MODEL, Key
from quintet.config.dialects.values import Value, choice, flag, mapping, number, text, whole

MIXFORMER = "mixformer-sequential"
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_approx": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "none",
}
NORMS = {"torch": "layer", "low_precision": "layer", "rms": "rms", "flash_rms": "rms"}
DTYPES = {
    f"{prefix}{theirs}": ours
    for prefix in ("", "torch.")
    for ours, names in (
        ("bf16", ("bf16", "bfloat16")),
        ("fp16", ("fp16", "half", "float16")),
        ("fp32", ("fp32", "float", "float32")),
    )
    for theirs in names
} | {"auto": "auto"}
_KERNEL = "the fastest kernel that gives the same numbers is taken by itself"


def _model(path: str, value: Value, help: str, *spellings: str, **more: Any) -> Key:
    return Key(f"model.{path}", value, help, aliases=tuple(f"model.{one}" for one in spellings), **more)


def _block(path: str, value: Value, help: str, **more: Any) -> Key:
    return Key(f"model.architecture.{path}", value, help, documented=False, **more)


MODEL = (
    _model(
        "model_type",
        text(),
        f"{MIXFORMER}, or the type of a model of the transformers library, with random weights",
        default=MIXFORMER,
        affects=("model.kind",),
    ),
    _model("vocab_size", whole(1), "ids", default=50304, affects=("model.vocab_size", "tokenizer.vocab_size")),
    _model(
        "n_positions",
        whole(2),
        "most positions",
        "n_ctx",
        "max_position_embeddings",
        default=2048,
        affects=("model.context_length",),
    ),
    _model("n_embd", whole(1), "width", "hidden_size", default=1024, affects=("model.width",)),
    _model("n_layer", whole(1), "blocks", "num_hidden_layers", default=20, affects=("model.layers",)),
    _model(
        "n_head",
        whole(1),
        "attention heads",
        "num_attention_heads",
        "architecture.mixer.n_head",
        default=16,
        affects=("model.attention.heads",),
    ),
    _model(
        "rotary_dim",
        whole(),
        "features of a head that are turned; all of them when 0 or not given, none when below 0",
        "architecture.mixer.rotary_dim",
        affects=("model.position.fraction", "model.position.kind"),
    ),
    _model(
        "embd_pdrop", number(0, below=1), "dropout on the embedding", default=0.0, affects=("model.embedding_dropout",)
    ),
    _model(
        "resid_pdrop",
        number(0, below=1),
        "dropout on what attention and feed-forward add",
        default=0.0,
        affects=("model.residual_dropout",),
    ),
    _model(
        "activation_function",
        choice(by=ACTIVATIONS),
        "function of the feed-forward network",
        "architecture.mlp.act_fn",
        default="gelu_tanh",
        affects=("model.feedforward.activation",),
    ),
    _model(
        "layer_norm_epsilon",
        number(above=0),
        "added to the variance in every norm",
        "architecture.norm.eps",
        default=1e-5,
        affects=("model.norm.eps",),
    ),
    _model(
        "initializer_range",
        number(above=0),
        "standard deviation of the first weights",
        default=0.02,
        affects=("model.init.std",),
    ),
    _model(
        "pad_vocab_size_multiple",
        whole(1),
        "the rows of embedding and head are a multiple of it",
        default=64,
        affects=("model.pad_vocab_size_multiple",),
    ),
    _model(
        "use_cache",
        flag(),
        "keys and values are kept while text is generated",
        default=True,
        no_effect="generation always keeps keys and values: it is faster and writes the same; training never does",
    ),
    _model(
        "embd_layer",
        choice("default", "positional"),
        "positional adds a learned vector a position to the embedding, beside the rotary positions",
        default="default",
        affects=("model.position.learned",),
    ),
    _model(
        "pretrained_model_name_or_path",
        text(),
        f"folder or hub name of the model to start from; with model_type: {MIXFORMER} a run or a model of that form",
        documented=False,
        affects=("model.name_or_path", "model.init"),
    ),
    _model(
        "model_task", choice("causal_lm", "seq_cls"), "what the model is for", documented=False, affects=("model.kind",)
    ),
    _model(
        "use_torch_compile",
        flag(),
        "compile the blocks; false leaves that to the device",
        documented=False,
        affects=("train.compile",),
    ),
    _model(
        "torch_dtype",
        choice(by=DTYPES),
        "numbers of the matrix products, where the training arguments say none",
        documented=False,
        affects=("train.precision",),
    ),
    _model(
        "trust_remote_code",
        flag(),
        "run the code beside a model of the hub",
        documented=False,
        affects=("model.trust_remote_code",),
    ),
    _model(
        "n_inner",
        whole(1),
        "feed-forward width; 4 × n_embd when not given",
        "architecture.mlp.n_inner",
        documented=False,
        affects=("model.feedforward.width",),
    ),
    _model(
        "n_head_kv",
        whole(1),
        "key and value heads; n_head when not given",
        "architecture.mixer.n_head_kv",
        documented=False,
        affects=("model.attention.kv_heads",),
    ),
    _model(
        "tie_word_embeddings",
        flag(),
        "one matrix for embedding and head",
        default=False,
        documented=False,
        affects=("model.tie_embeddings",),
    ),
    _model(
        "gradient_checkpointing",
        flag(),
        "keep only what enters each block and compute the rest again in the backward pass",
        documented=False,
        affects=("model.gradient_checkpointing", "train.activation_checkpointing"),
    ),
    _model(
        "cross_sample_token_id",
        whole(0),
        "id that ends a document; tokens see those of their own document only",
        "cross_sample_sep",
        documented=False,
        affects=("model.attention.mask", "tokenizer.end_id", "data.sources[].document"),
    ),
    *(
        _model(path, whole(), help, documented=False, pending=SPLIT_MODEL, noop_values=(1, 0))
        for path, help in (("cp_size", "context parallelism"), ("tp_size", "tensor parallelism"))
    ),
    _block(
        "block_cls",
        choice(by={"parallel": "parallel", "sequential": "pre_norm"}),
        "parallel: x + attention(norm(x)) + feed-forward(norm(x)); sequential: one after the other",
        default="parallel",
        aliases=("model.architecture.path",),
        affects=("model.block",),
    ),
    _block("mixer.mixer_cls", choice("mha"), "class of the attention", affects=("model.attention.kind",)),
    _block("mixer.head_dim", whole(1), "size of a head; n_embd / n_head", affects=("model.attention.head_dim",)),
    _block(
        "mixer.causal",
        flag(),
        "only earlier positions are seen; false: all",
        default=True,
        affects=("model.attention.kind",),
    ),
    _block(
        "mixer.use_alibi",
        flag(),
        "a bias that grows with the distance",
        pending="attention with linear biases",
        noop_values=(False,),
    ),
    _block("mixer.softmax_scale", number(above=0), "factor on the products", affects=("model.attention.scale",)),
    _block("mixer.window_size", window(), "earlier positions that are seen", affects=("model.attention.window",)),
    Key(
        "model.architecture.mixer.dropout",
        number(0, below=1),
        "dropout on the attention weights",
        default=0.0,
        documented=False,
        aliases=("model.attn_pdrop",),
        affects=("model.attention.dropout",),
    ),
    _block("mixer.bias", flag(), "biases of queries, keys and values", default=True, affects=("model.attention.bias",)),
    _block("mixer.out_bias", flag(), "bias of attention's output; as bias", affects=("model.attention.output_bias",)),
    _block(
        "mixer.qk_norm",
        flag(),
        "norm of queries and keys of each head",
        default=False,
        affects=("model.attention.qk_norm",),
    ),
    _block(
        "mixer.rotary_base",
        number(above=1),
        "base of the wavelengths",
        default=10_000.0,
        affects=("model.position.theta",),
    ),
    _block(
        "mixer.rotary_scale_base",
        number(1),
        "factor of YaRN, with rope_scaling",
        affects=("model.position.scaling.factor",),
    ),
    _block(
        "mixer.rope_scaling",
        mapping(),
        "how wavelengths are stretched: rope_type yarn or linear, and factor",
        affects=("model.position.scaling",),
    ),
    *(
        _block(f"mixer.{path}", flag(), help, no_effect=_KERNEL)
        for path, help in (
            ("flash_attn", "FlashAttention"),
            ("flash_rotary", "a fused kernel of the rotary positions"),
            ("fused_dense", "a fused kernel of the projections"),
        )
    ),
    _block(
        "mlp.mlp_cls",
        choice(by={"mlp": "plain", "fused_mlp": "plain", "glu": "gated"}),
        "mlp and fused_mlp: down(activation(up(x))); glu: gated, without biases",
        default="plain",
        affects=("model.feedforward.kind",),
    ),
    _block(
        "norm.norm_cls",
        choice(by=NORMS),
        "layer norm, or root-mean-square",
        default="layer",
        affects=("model.norm.kind",),
    ),
    _block("head.head_cls", choice("causal_lm", "seq_cls"), "class of the head", affects=("model.head",)),
    _block("head.use_bias", flag(), "bias of the head", default=True, affects=("model.head.bias",)),
    _block("loss.loss_cls", choice("causal_lm"), "class of the loss", affects=("loss.kind",)),
    _block(
        "loss.shift_labels",
        flag(),
        "the model shifts the labels; false only where the dataset does",
        default=True,
        affects=("data.packing.predict_next",),
    ),
    _block("loss.reduction", choice("mean"), "the loss is the mean over tokens", affects=("loss.kind",)),
    *(
        _block(f"loss.{path}", flag(), "a kernel of the loss", no_effect=_KERNEL)
        for path in ("flash_cross_entropy_loss", "inplace_backward")
    ),
)
