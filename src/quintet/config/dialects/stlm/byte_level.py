"""Rules for STLM's byte-level files: which parts spell ids with bytes, and what the loss over bytes means.

The original tokenises twice: `tokenizer_type` cuts a text into tokens, `byte_tokenizer_type` spells each of them with
byte ids, and a sample is a matrix of these. Here a sample holds the ids of the tokens, and the model has a table of
their bytes. A loss averaged over all places of a token's spelling is that of the token divided by their number; so the
bound on the gradient and AdamW's epsilon, which are compared with gradients, are multiplied by it.
"""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.names import EXPERIMENT
from quintet.config.dialects.stlm.schema import File
from quintet.config.embedding_and_head import BYTE_SYMBOLS, ByteEmbeddingConfig, ByteHeadConfig
from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig

HEADS, EMBEDDING_LAYERS, HEAD_LAYERS = 8, 4, 7  # fixed in the original's code, of its latest revision
SIZES = ("byte_context_window", "byte_embedding_dim")
SPELLING = ("byte_tokenizer_type", "byte_vocab_size", *SIZES)
OF_THE_HEAD = ("lm_head_normalization", "lm_head_bias", "lm_head_dropout")
ADAM_EPS = 1e-8
_EMBEDDING, _HEAD, _SHELL = "model.embedding_model_type", "model.lm_head_type", "model.model_shell_type"
_TYING, _LOSS, _SAMPLES = "model.embedding_weight_tying", "trainer.loss_fn.name", "trainer.dataloader.name"


def byte_level(theirs: File, native: NativeBuilder) -> None:
    """Set embedding, head, and what the loss acts on, of a transformer with byte-level parts, after all else of the
    model and the optimizer; refuse what belongs to these without one."""
    model, trainer = theirs.model, theirs.trainer
    embeds, decodes = model.embedding_model_type == "bytes", model.lm_head_type == "bytes"
    needs = (
        (_SHELL, model.model_shell_type == "byte_shell", decodes, "byte_shell reads the bytes back with lm_head_type"),
        (_SHELL, model.model_shell_type == "byte_enc_shell", embeds, "byte_enc_shell goes with embedding_model_type"),
        (_SAMPLES, trainer.dataloader.name == "byte_pooling", decodes, "byte_pooling has bytes for lm_head_type"),
        (_SAMPLES, trainer.dataloader.name == "dual", embeds, "dual_byte_pooling has bytes for embedding_model_type"),
        (_LOSS, trainer.loss_fn.name == "masked_bytes", decodes, "masked_cross_entropy is a loss for lm_head_type"),
    )
    for key, asked, there, why in needs:
        if asked and not there:
            native.refuse(key, f"{why}: byte_level; set that, or another one here")
    if not embeds and not decodes:
        for name in SPELLING:
            if native.has(f"model.{name}"):
                native.refuse(f"model.{name}", "is for byte-level parts, and this model has none; leave it out")
        return
    if model.core_model_type == "hf_core":
        native.refuse(_EMBEDDING if embeds else _HEAD, "byte_level goes with core_model_type: generic alone")
        return
    _spelling(theirs, native)
    _norms(native)
    width = _width(theirs, native)
    shape = {"kind": "bytes", "bytes": model.byte_context_window, "width": width, "heads": HEADS}
    sizes = [f"model.{name}" for name in (*SIZES, "embedding_dim")]
    if embeds:
        native.set("model.embedding", shape | {"layers": EMBEDDING_LAYERS}, _EMBEDDING, *sizes)
    if decodes:
        head = {"layers": HEAD_LAYERS, "norm": {"kind": "none"}}
        native.set("model.head", shape | head, _HEAD, *sizes)
        if model.model_shell_type == "byte_shell":
            native.set("model.head.reconstruction", 1.0, _SHELL)
        _loss(theirs, native)
        unread = [f"model.{name}" for name in OF_THE_HEAD if native.has(f"model.{name}")]
        if unread:
            native.say(
                f"{', '.join(unread)}: read with lm_head_type: generic alone; a byte-level head has no such part"
            )
    if native.has(_TYING) and model.embedding_weight_tying and not native.refused_for(EXPERIMENT):
        native.refuse(_TYING, "a byte-level embedding or head has no row for each token to share; set it to false")
    native.set("model.tie_embeddings", False, _TYING)
    layers = {"embedding": EMBEDDING_LAYERS} if embeds else {}
    layers |= {"head": HEAD_LAYERS} if decodes else {}
    counts = " and ".join(f"{count} blocks in the {part}" for part, count in layers.items())
    older = ", ".join(f"{part}: {{layers: 2}}" for part in layers)
    native.say(
        f"model: byte-level, with {counts}, as in STLM since June 2024; before it had 2, which "
        f"quintet: {{model: {{{older}}}}} sets"
    )


def _spelling(theirs: File, native: NativeBuilder) -> None:
    model = theirs.model
    if model.byte_vocab_size != BYTE_SYMBOLS:
        native.refuse(
            "model.byte_vocab_size",
            f"a token is spelled with single bytes, and these and two marks are {BYTE_SYMBOLS}; leave it out",
        )


def _width(theirs: File, native: NativeBuilder) -> int:
    """Features of a byte, which the oldest files call embedding_dim."""
    model, key, older = theirs.model, "model.byte_embedding_dim", "model.embedding_dim"
    width = model.byte_embedding_dim
    if model.embedding_dim not in (None, model.hidden_dim):
        if native.has(key) and model.embedding_dim != width:
            native.refuse(older, f"{model.embedding_dim} is not the {width} of byte_embedding_dim; keep one of them")
        width, key = model.embedding_dim, older
    if width % HEADS:
        native.refuse(key, f"the {HEADS} heads of STLM's byte-level blocks do not divide it")
    return width


def _norms(native: NativeBuilder) -> None:
    """The norm of the byte-level blocks is always rms, and is the model's; blocks with another one have their own."""
    usual, rms = native.get("model.norm"), {"kind": "rms", "eps": 1e-6}
    if usual is None or usual["kind"] == "rms":
        return
    for part in ("attention", "feedforward", "head"):
        if native.get(f"model.{part}.norm") is None:
            native.set(f"model.{part}.norm", usual, "model.attn.normalization", "model.attn.bias")
    native.set("model.norm", rms, _EMBEDDING, _HEAD)


def _loss(theirs: File, native: NativeBuilder) -> None:
    """Make gradients of a loss that is summed over the bytes of a token act as those of its mean."""
    if theirs.trainer.loss_fn.name == "masked_bytes":
        native.set("loss.kind", "next_token", _LOSS)
        native.say(
            "trainer.loss_fn: masked_cross_entropy leaves out byte 257, which no token of STLM's has; the padding of a "
            "token counts, as with cross_entropy"
        )
    if native.get("optimizer.kind") != "adamw":
        native.refuse(
            "trainer.optimizer.optimizer_name",
            "STLM's loss is the mean over the bytes of a token and here it is their sum, which AdamW alone makes up "
            "for; set AdamW or nanoGPTadamW",
        )
        return
    places = theirs.model.byte_context_window
    if (largest := native.get("train.clip_norm")) is not None:
        native.set("train.clip_norm", largest * places, "trainer.optimizer.grad_clip", "model.byte_context_window")
    native.set("optimizer.eps", ADAM_EPS * places, "model.byte_context_window")
    native.say(
        f"trainer.loss_fn: the loss of a token is the sum over its {places} bytes, which STLM averages: losses here "
        f"are {places} times STLM's, and so are the bound on the gradient and AdamW's eps, so that the steps are the "
        "same"
    )


def byte_level_back(config: RunConfig) -> dict[str, Any]:
    """The keys of STLM that say what ``config`` has of byte-level parts."""
    model = config.model
    if not isinstance(model, TransformerConfig) or not model.byte_parts:
        return {}
    part, head = model.byte_parts[0], model.head
    values: dict[str, Any] = {"model.byte_context_window": part.bytes, "model.byte_embedding_dim": part.width}
    if isinstance(model.embedding, ByteEmbeddingConfig):
        values |= {"model.embedding_model_type": "bytes", "model.model_shell_type": "byte_enc_shell"}
    if isinstance(head, ByteHeadConfig):
        shell = "byte_shell" if head.reconstruction else "standard"
        values |= {"model.lm_head_type": "bytes", "model.model_shell_type": shell}
        values |= {"model.lm_head_normalization": None}
        values |= {"trainer.optimizer.grad_clip": (config.train.clip_norm or 0.0) / head.bytes}
    return values
