"""The families of Hugging Face models that our transformer can express, one entry each: tables of names, and the values
that all members of a family share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Names = Mapping[str, str | tuple[str, str, str]]


@dataclass(frozen=True)
class Family:
    """A family with the name ``model_type`` in a `config.json`, whose models have the class ``architecture``.

    ``keys`` maps keys of our `model` section to keys of the `config.json`, and ``fixed`` holds the values of our
    section that all members share. ``needs`` are the only values of keys of the `config.json` that our transformer can
    express. ``window`` is the form of a window in a `config.json`: none, a number, a number and the type of each layer,
    or these and a switch.

    ``names`` maps our modules with weights to theirs, with ``*`` for the number of a block; three names are the
    projections to queries, keys and values, which are one matrix here. Names start with ``base`` in a model with a head
    and not in one without. ``transposed`` matrices are stored as [inputs, outputs], and ``norm_offset`` is added to the
    factors of a norm.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    names: Names
    base: str
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    window: Literal["none", "number", "layer_types", "switch"] = "none"
    partial_rotation: bool = False
    scaled_embedding: bool = False
    transposed: bool = False
    norm_offset: float = 0.0


_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "attention.heads": "num_attention_heads",
    "attention.kv_heads": "num_key_value_heads",
    "attention.head_dim": "head_dim",
    "attention.dropout": "attention_dropout",
    "feedforward.width": "intermediate_size",
    "feedforward.activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
}
_RMS = {"norm.eps": "rms_norm_eps"}
_BIAS = {"attention.bias": "attention_bias"}
_GATED = {"norm.kind": "rms", "feedforward.kind": "gated", "position.kind": "rope"}

_ATTENTION: Names = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.*.attention.qkv": (
        "model.layers.*.self_attn.q_proj",
        "model.layers.*.self_attn.k_proj",
        "model.layers.*.self_attn.v_proj",
    ),
    "blocks.*.attention.output": "model.layers.*.self_attn.o_proj",
    "blocks.*.feedforward.gate": "model.layers.*.mlp.gate_proj",
    "blocks.*.feedforward.up": "model.layers.*.mlp.up_proj",
    "blocks.*.feedforward.down": "model.layers.*.mlp.down_proj",
}
_QK_NORM: Names = {
    "blocks.*.attention.query_norm": "model.layers.*.self_attn.q_norm",
    "blocks.*.attention.key_norm": "model.layers.*.self_attn.k_norm",
}
_LLAMA: Names = _ATTENTION | {
    "blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "blocks.*.feedforward_norm": "model.layers.*.post_attention_layernorm",
}
_OLMO2: Names = (
    _ATTENTION
    | _QK_NORM
    | {
        "blocks.*.attention_norm": "model.layers.*.post_attention_layernorm",
        "blocks.*.feedforward_norm": "model.layers.*.post_feedforward_layernorm",
    }
)
_GEMMA2: Names = _ATTENTION | {
    "blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "blocks.*.attention_output_norm": "model.layers.*.post_attention_layernorm",
    "blocks.*.feedforward_norm": "model.layers.*.pre_feedforward_layernorm",
    "blocks.*.feedforward_output_norm": "model.layers.*.post_feedforward_layernorm",
}
_PHI: Names = {
    "embedding": "model.embed_tokens",
    "norm": "model.final_layernorm",
    "head": "lm_head",
    "blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "blocks.*.attention.qkv": (
        "model.layers.*.self_attn.q_proj",
        "model.layers.*.self_attn.k_proj",
        "model.layers.*.self_attn.v_proj",
    ),
    "blocks.*.attention.output": "model.layers.*.self_attn.dense",
    "blocks.*.feedforward.up": "model.layers.*.mlp.fc1",
    "blocks.*.feedforward.down": "model.layers.*.mlp.fc2",
}
_GPT2: Names = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.*.attention_norm": "transformer.h.*.ln_1",
    "blocks.*.attention.qkv": "transformer.h.*.attn.c_attn",
    "blocks.*.attention.output": "transformer.h.*.attn.c_proj",
    "blocks.*.feedforward_norm": "transformer.h.*.ln_2",
    "blocks.*.feedforward.up": "transformer.h.*.mlp.c_fc",
    "blocks.*.feedforward.down": "transformer.h.*.mlp.c_proj",
}

FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        keys=_SIZES | _RMS | _BIAS | {"feedforward.bias": "mlp_bias"},
        fixed=_GATED,
        names=_LLAMA,
        base="model.",
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        keys={
            "layers": "n_layer",
            "width": "n_embd",
            "vocab_size": "vocab_size",
            "context_length": "n_positions",
            "attention.heads": "n_head",
            "attention.dropout": "attn_pdrop",
            "embedding_dropout": "embd_pdrop",
            "residual_dropout": "resid_pdrop",
            "feedforward.width": "n_inner",
            "feedforward.activation": "activation_function",
            "norm.eps": "layer_norm_epsilon",
            "tie_embeddings": "tie_word_embeddings",
        },
        fixed={
            "attention.bias": True,
            "norm.kind": "layer",
            "feedforward.kind": "plain",
            "feedforward.bias": True,
            "position.kind": "learned",
        },
        needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        names=_GPT2,
        base="transformer.",
        transposed=True,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        keys=_SIZES | _RMS,
        fixed=_GATED,
        names=_LLAMA,
        base="model.",
        window="number",
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        keys=_SIZES | _RMS,
        fixed=_GATED | {"attention.bias": True, "attention.output_bias": False},
        names=_LLAMA,
        base="model.",
        window="switch",
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        keys=_SIZES | _RMS | _BIAS,
        fixed=_GATED | {"attention.qk_norm": "head"},
        names=_LLAMA | _QK_NORM,
        base="model.",
        window="switch",
    ),
    Family(
        "phi",
        "PhiForCausalLM",
        keys=_SIZES
        | {"norm.eps": "layer_norm_eps", "embedding_dropout": "embd_pdrop", "residual_dropout": "resid_pdrop"},
        fixed={
            "block": "parallel",
            "attention.bias": True,
            "norm.kind": "layer",
            "feedforward.kind": "plain",
            "feedforward.bias": True,
            "head.bias": True,
            "position.kind": "rope",
        },
        needs={"qk_layernorm": False},
        names=_PHI,
        base="model.",
        partial_rotation=True,
    ),
    Family(
        "gemma",
        "GemmaForCausalLM",
        keys=_SIZES | _RMS | _BIAS,
        fixed=_GATED,
        needs={"use_bidirectional_attention": None},
        names=_LLAMA,
        base="model.",
        scaled_embedding=True,
        norm_offset=1.0,
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        keys=_SIZES
        | _RMS
        | _BIAS
        | {"feedforward.activation": "hidden_activation", "attention.scale": "query_pre_attn_scalar"},
        fixed=_GATED | {"block": "sandwich_norm"},
        needs={
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": None,
        },
        names=_GEMMA2,
        base="model.",
        window="layer_types",
        scaled_embedding=True,
        norm_offset=1.0,
    ),
    Family(
        "olmo",
        "OlmoForCausalLM",
        keys=_SIZES | _BIAS,
        fixed=_GATED | {"norm.kind": "layer", "norm.eps": 1e-5, "norm.gain": False, "norm.bias": False},
        needs={"clip_qkv": None},
        names=_ATTENTION,
        base="model.",
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        keys=_SIZES | _RMS | _BIAS,
        fixed=_GATED | {"block": "output_norm", "attention.qk_norm": "projection"},
        names=_OLMO2,
        base="model.",
    ),
)
"""In the order in which an export tries them."""
