"""How positions exchange information."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quintet.config.model.norm import ModelNormConfig, PlaceNormConfig
from quintet.config.section import ConfigSection, config_error, key

DOCUMENT_MASKS = ("causal_document", "document", "prefix")


class _Attention(ConfigSection):
    """What both kinds have: heads, projections, window, dropout, the code that computes it."""

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
    dropout: float = key(0.0, "dropout on the attention weights", unit="probability", ge=0, lt=1)
    input_dropout: float = key(0.0, "dropout on what enters the attention", unit="probability", ge=0, lt=1)
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

    @model_validator(mode="after")
    def _fits(self) -> CausalAttentionConfig:
        if self.mask == "prefix" and self.window is not None:
            raise config_error("window", "does not go with mask: prefix; leave one of the two out")
        _check(self, self.mask)
        return self


class BidirectionalAttentionConfig(_Attention):
    """Multi-head attention to earlier and to later positions, for masked language modelling (Devlin et al. 2019)."""

    kind: Literal["bidirectional"] = key(..., "each position attends to all")
    mask: Literal["full", "document"] = key("full", "full: all positions; document: those of the same document")

    @model_validator(mode="after")
    def _fits(self) -> BidirectionalAttentionConfig:
        _check(self, self.mask)
        return self


def _check(config: _Attention, mask: str) -> None:
    if config.restart_positions and mask not in DOCUMENT_MASKS:
        raise config_error(
            "restart_positions", f"needs a mask that tells documents ({', '.join(DOCUMENT_MASKS)}), not {mask}"
        )
    if config.backend == "flash" and (config.window is not None or mask not in ("causal", "full")):
        reason = "a window" if config.window is not None else f"mask: {mask}"
        raise config_error("backend", f"PyTorch's FlashAttention knows no {reason}; set backend to auto, sdpa or flex")
    if config.backend == "flex" and config.dropout:
        raise config_error("backend", "FlexAttention cannot drop attention weights; set dropout: 0 or another backend")


AttentionConfig = Annotated[CausalAttentionConfig | BidirectionalAttentionConfig, Field(discriminator="kind")]
