"""Rules for STLM's byte-level files.

STLM tokenizes twice: `tokenizer_type` cuts a text into tokens, `byte_tokenizer_type` spells each token with byte ids,
and a sample is a matrix of byte ids. Here a sample holds the ids of the tokens, and the model has a table of their
bytes. STLM's loss of a token is the mean over the places of its spelling, Quintet's is their sum. So the bound on the
gradient and AdamW's epsilon, which are compared with gradients, are multiplied by the number of places.
"""

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.values import EXPERIMENT
from quintet.config.embedding_and_head import BYTE_SYMBOLS

_HEADS, _EMBEDDING_LAYERS, _HEAD_LAYERS = 8, 4, 7  # fixed in the latest revision of STLM's code
_ADAM_EPS = 1e-8
_SIZES = ("byte_context_window", "byte_embedding_dim")
_EMBEDDING, _HEAD, _SHELL = "model.embedding_model_type", "model.lm_head_type", "model.model_shell_type"
_TYING, _LOSS, _LOADER = "model.embedding_weight_tying", "trainer.loss_fn.name", "trainer.dataloader.name"


def set_byte_level(theirs: File, native: NativeBuilder) -> None:
    """Set byte-level parts, after the other rules of model and optimizer; refuse their keys if there are none."""
    model, trainer = theirs.model, theirs.trainer
    embeds, decodes = model.embedding_model_type == "bytes", model.lm_head_type == "bytes"
    needs = (
        (_SHELL, model.model_shell_type == "byte_shell", decodes, "byte_shell needs lm_head_type"),
        (_SHELL, model.model_shell_type == "byte_enc_shell", embeds, "byte_enc_shell needs embedding_model_type"),
        (_LOADER, trainer.dataloader.name == "byte_pooling", decodes, "byte_pooling needs lm_head_type"),
        (_LOADER, trainer.dataloader.name == "dual", embeds, "dual_byte_pooling needs embedding_model_type"),
        (_LOSS, trainer.loss_fn.name == "masked_bytes", decodes, "masked_cross_entropy needs lm_head_type"),
    )
    for key, is_set, is_met, need in needs:
        if is_set and not is_met:
            native.refuse(key, f"{need}: byte_level; set that, or another value here")
    if not embeds and not decodes:
        for path in (f"model.{name}" for name in ("byte_tokenizer_type", "byte_vocab_size", *_SIZES)):
            if native.has(path):
                native.refuse(path, "is for byte-level parts, and this model has none; leave it out")
        return
    if model.core_model_type == "hf_core":
        native.refuse(_EMBEDDING if embeds else _HEAD, "byte_level works with core_model_type: generic only")
        return
    if model.byte_vocab_size != BYTE_SYMBOLS:
        native.refuse(
            "model.byte_vocab_size",
            f"must be {BYTE_SYMBOLS}: a token is spelled with single bytes and two marks; leave it out",
        )
    _set_norms(native)
    part = {"kind": "bytes", "bytes": model.byte_context_window, "width": _width(theirs, native), "heads": _HEADS}
    sizes = [f"model.{name}" for name in (*_SIZES, "embedding_dim")]
    if embeds:
        native.set("model.embedding", part | {"layers": _EMBEDDING_LAYERS}, _EMBEDDING, *sizes)
    if decodes:
        native.set("model.head", part | {"layers": _HEAD_LAYERS, "norm": {"kind": "none"}}, _HEAD, *sizes)
        if model.model_shell_type == "byte_shell":
            native.set("model.head.reconstruction", 1.0, _SHELL)
        _set_loss(theirs, native)
        paths = (f"model.{name}" for name in ("lm_head_normalization", "lm_head_bias", "lm_head_dropout"))
        if unread := list(filter(native.has, paths)):
            native.say(f"{', '.join(unread)}: not read, because a byte-level head has no such part")
    if native.has(_TYING) and model.embedding_weight_tying and not native.refused_for(EXPERIMENT):
        native.refuse(_TYING, "a byte-level embedding or head has no row per token to share; set it to false")
    native.set("model.tie_embeddings", False, _TYING)
    _say_layers(embeds, decodes, native)


def _say_layers(embeds: bool, decodes: bool, native: NativeBuilder) -> None:
    layers = ({"embedding": _EMBEDDING_LAYERS} if embeds else {}) | ({"head": _HEAD_LAYERS} if decodes else {})
    counts = " and ".join(f"{count} blocks in the {part}" for part, count in layers.items())
    older = ", ".join(f"{part}: {{layers: 2}}" for part in layers)
    native.say(
        f"model: byte-level, with {counts}, as in STLM since June 2024; before that it had 2: "
        f"set quintet: {{model: {{{older}}}}}"
    )


def _width(theirs: File, native: NativeBuilder) -> int:
    """Return the features of a byte, which the oldest files call embedding_dim."""
    model, key, older = theirs.model, "model.byte_embedding_dim", "model.embedding_dim"
    width = model.byte_embedding_dim
    if model.embedding_dim not in (None, model.hidden_dim):
        if native.has(key) and model.embedding_dim != width:
            native.refuse(older, f"{model.embedding_dim} is not the {width} of byte_embedding_dim; keep one of them")
        width, key = model.embedding_dim, older
    if width % _HEADS:
        native.refuse(key, f"must be a multiple of {_HEADS}, the heads of STLM's byte-level blocks")
    return width


def _set_norms(native: NativeBuilder) -> None:
    """Make rms the model's norm, which byte-level blocks always have; the other blocks keep theirs as their own."""
    usual = native.get("model.norm")
    if usual is None or usual["kind"] == "rms":
        return
    for part in ("attention", "feedforward", "head"):
        if native.get(f"model.{part}.norm") is None:
            native.set(f"model.{part}.norm", usual, "model.attn.normalization", "model.attn.bias")
    native.set("model.norm", {"kind": "rms", "eps": 1e-6}, _EMBEDDING, _HEAD)


def _set_loss(theirs: File, native: NativeBuilder) -> None:
    """Make the gradients of a sum over a token's bytes act as those of their mean."""
    if theirs.trainer.loss_fn.name == "masked_bytes":
        native.set("loss.kind", "next_token", _LOSS)
        native.say(
            "trainer.loss_fn: masked_cross_entropy ignores byte 257, which no token of STLM has; the padding of a "
            "token counts, as with cross_entropy"
        )
    if native.get("optimizer.kind") != "adamw":
        native.refuse(
            "trainer.optimizer.optimizer_name",
            "STLM's loss is the mean over the bytes of a token and here it is their sum, for which only AdamW can "
            "compensate; set AdamW or nanoGPTadamW",
        )
        return
    places = theirs.model.byte_context_window
    if (bound := native.get("train.clip_norm")) is not None:
        native.set("train.clip_norm", bound * places, "trainer.optimizer.grad_clip", "model.byte_context_window")
    native.set("optimizer.eps", _ADAM_EPS * places, "model.byte_context_window")
    native.say(
        f"trainer.loss_fn: the loss of a token is the sum over its {places} bytes, which STLM averages: losses here "
        f"are {places} times STLM's, and so are the bound on the gradient and AdamW's eps, so that the steps are equal"
    )
