"""What decides the function that a transformer computes, apart from its weights, and where two of them differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quintet.config.model import (
    CausalAttentionConfig,
    NoScalingConfig,
    NTKScalingConfig,
    RopeConfig,
    TransformerConfig,
)

ADAPTABLE = (
    "attention.kind",
    "attention.mask",
    "attention.window",
    "position.theta",
    "position.scaling",
    "embedding_scale",
)
"""What training may change while the weights go on to mean what they did: who sees whom, how far positions reach."""


def architecture(config: TransformerConfig) -> dict[str, Any]:
    """Every such fact by its key under `model`, with the values that are left out in the run file filled in.

    Sizes of the vocabulary and of the context, dropout, how weights start and which kernel runs are not among them.
    """
    attention, feedforward, position = config.attention, config.feedforward, config.position
    facts: dict[str, Any] = {
        "layers": config.layers,
        "width": config.width,
        "block": config.block,
        "attention.kind": attention.kind,
        "attention.mask": attention.mask,
        "attention.heads": config.heads,
        "attention.kv_heads": config.kv_heads,
        "attention.head_dim": config.head_dim,
        "attention.bias": attention.bias,
        "attention.output_bias": config.output_bias,
        "attention.qk_norm": attention.qk_norm,
        "attention.scale": attention.scale or config.head_dim**-0.5,
        "attention.window": attention.window,
        "feedforward.kind": feedforward.kind,
        "feedforward.width": config.hidden,
        "feedforward.activation": feedforward.activation,
        "feedforward.bias": feedforward.bias,
        "head.bias": config.head.bias,
        "embedding_scale": config.embedding_scale,
        "tie_embeddings": config.tie_embeddings,
        "tie_feedforward": config.tie_feedforward,
        "tie_attention_output": config.tie_attention_output,
        "position.kind": position.kind,
    }
    if isinstance(position, RopeConfig):
        facts["position.theta"] = position.theta
        facts["position.fraction"] = config.rotary_dim / config.head_dim
        facts["position.pairs"] = position.pairs
        facts["position.learned"] = position.learned
        facts["position.scaling"] = position.scaling.model_dump()
    elif position.kind == "sinusoidal":
        facts["position.theta"] = position.theta
    norms = {"attention.norm": config.attention_norm, "head.norm": config.last_norm}
    if config.block != "parallel":
        norms["feedforward.norm"] = config.feedforward_norm
    if attention.qk_norm != "none":
        norms["norm"] = config.norm
    for place, norm in norms.items():
        facts |= {f"{place}.{name}": value for name, value in norm.model_dump().items()}
    return facts


def portable(config: TransformerConfig) -> TransformerConfig:
    """The architecture that computes the same for a document alone and that other software may know.

    Weights go along with it in ``portable_weights``: what blocks share is written out for each of them, and features
    that turn together stand half a head apart.
    """
    attention, position = config.attention, config.position
    if isinstance(attention, CausalAttentionConfig) and attention.mask == "causal_document":
        attention = attention.model_copy(update={"mask": "causal", "restart_positions": False})
    if isinstance(position, RopeConfig):
        update: dict[str, Any] = {"pairs": "halves"}
        if isinstance(position.scaling, NTKScalingConfig):
            features = config.rotary_dim
            larger = position.scaling.factor ** (features / (features - 2)) if features > 2 else 1.0
            update |= {"theta": position.theta * larger, "scaling": NoScalingConfig()}
        position = position.model_copy(update=update)
    update = {
        "attention": attention,
        "position": position,
        "tie_feedforward": False,
        "tie_attention_output": False,
    }
    return config.model_copy(update=update)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values in ``one`` and in ``other`` of each key in which two architectures differ; None where one lacks it."""
    return {
        name: (one.get(name), other.get(name)) for name in {**one, **other} if not _same(one.get(name), other.get(name))
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return not differences(one, other)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
