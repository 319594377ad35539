"""The keys of `model.ffn` and `model.attn`."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.stlm.words import ACTIVATIONS, NORMS, named
from quintet.config.dialects.table import Key
from quintet.config.dialects.values import Value, choice, flag, number, whole


def _block(part: str, name: str, value: Value, help: str, *others: str, **more: Any) -> Key:
    """A key of ``ffn`` or ``attn``, which older files have in ``core_model`` and newer ones in ``params``."""
    spelled = (name, *others)
    aliases = tuple(f"model.{part}.{other}" for other in others)
    aliases += tuple(
        f"model.{place}.{other}" for place in (f"core_model.{part}", f"{part}.params") for other in spelled
    )
    return Key(f"model.{part}.{name}", value, help, aliases=aliases, **more)


FFN = (
    _block(
        "ffn",
        "ffn_type",
        named(
            {"generic": "plain", "silu_ffn": "gated", "swiglu": "gated"},
            ("moe_ffn", "grin_moe_ffn", "block_shuffle_ffn", "fast_ffn", "kan_ffn"),
        ),
        "generic: two layers and a function; silu_ffn: a third one as a gate",
        "name",
        default="plain",
        affects=("model.feedforward.kind",),
    ),
    _block("ffn", "ffn_dim", whole(1), "feed-forward dimension", affects=("model.feedforward.width",)),
    _block(
        "ffn",
        "bias",
        flag(),
        "biases of its layers, and of its layer_norm",
        default=False,
        affects=("model.feedforward.bias",),
    ),
    _block(
        "ffn",
        "ffn_dropout",
        number(0, below=1, off=0),
        "dropout on what enters it",
        "dropout",
        default=0.0,
        affects=("model.feedforward.input_dropout",),
    ),
    _block(
        "ffn",
        "activation",
        choice(by=ACTIVATIONS, any_case=True),
        "generic: function between the layers",
        default="gelu",
        affects=("model.feedforward.activation",),
    ),
    _block(
        "ffn",
        "normalization",
        choice(by=NORMS, any_case=True),
        "norm in front of it",
        default="rms",
        affects=("model.norm", "model.feedforward.norm"),
    ),
)

ATTN = (
    _block(
        "attn",
        "attn_type",
        named(
            {
                "causal": "causal",
                "bidirectional": "bidirectional",
                "generic": "generic",
                "generic_attention": "generic",
                "rope_attention": "rope",
            },
            (
                *("alibi_attention", "linformer_attention", "performer_attention", "sparse_attention"),
                "differentiable_attention",
            ),
        ),
        "which positions a position attends to",
        "name",
        default="causal",
        affects=("model.attention.kind",),
    ),
    _block(
        "attn",
        "num_kv_heads",
        whole(1),
        "key and value heads: the smaller of the two numbers of heads",
        affects=("model.attention.kv_heads",),
    ),
    _block(
        "attn",
        "num_q_heads",
        whole(1),
        "query heads: the larger one; num_kv_heads when not given",
        "num_heads",
        affects=("model.attention.heads",),
    ),
    _block(
        "attn",
        "group_size",
        whole(1),
        "query heads for each key head",
        documented=False,
        affects=("model.attention.kv_heads",),
    ),
    _block("attn", "is_causal", flag(), "causal or bidirectional", documented=False, affects=("model.attention.kind",)),
    _block(
        "attn",
        "bias",
        flag(),
        "biases of its projections, and of its layer_norm",
        default=False,
        affects=("model.attention.bias",),
    ),
    _block(
        "attn",
        "attn_dropout",
        number(0, below=1, off=0),
        "dropout on what enters it",
        "dropout",
        default=0.0,
        affects=("model.attention.input_dropout",),
    ),
    _block(
        "attn",
        "normalization",
        choice(by=NORMS, any_case=True),
        "norm in front of it",
        default="rms",
        affects=("model.norm", "model.attention.norm"),
    ),
    Key(
        "model.attention_type",
        choice("standard"),
        "attention",
        aliases=("model.attn.attention_type",),
        documented=False,
        no_effect="STLM has no other attention by this key",
    ),
)
