"""What PhyAGI's models are here: mixformer-sequential is our transformer, others are of the transformers library."""

from __future__ import annotations

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.model_keys import MIXFORMER
from quintet.config.keypath import lookup, path_of
from quintet.config.names import local_path

ARCHITECTURE = "model.architecture"
MIXER = f"{ARCHITECTURE}.mixer"
PRETRAINED = "model.pretrained_model_name_or_path"
PLAIN = {
    "model.vocab_size": "model.vocab_size",
    "model.n_positions": "model.context_length",
    "model.n_embd": "model.width",
    "model.n_layer": "model.layers",
    "model.n_head": "model.attention.heads",
    "model.n_head_kv": "model.attention.kv_heads",
    "model.embd_pdrop": "model.embedding_dropout",
    "model.resid_pdrop": "model.residual_dropout",
    "model.activation_function": "model.feedforward.activation",
    "model.layer_norm_epsilon": "model.norm.eps",
    "model.pad_vocab_size_multiple": "model.pad_vocab_size_multiple",
    "model.tie_word_embeddings": "model.tie_embeddings",
    f"{ARCHITECTURE}.block_cls": "model.block",
    f"{MIXER}.head_dim": "model.attention.head_dim",
    f"{MIXER}.dropout": "model.attention.dropout",
    f"{MIXER}.bias": "model.attention.bias",
    f"{MIXER}.softmax_scale": "model.attention.scale",
    f"{ARCHITECTURE}.mlp.mlp_cls": "model.feedforward.kind",
    f"{ARCHITECTURE}.norm.norm_cls": "model.norm.kind",
    f"{ARCHITECTURE}.head.use_bias": "model.head.bias",
}
"""Keys that say the same as one of ours."""

_OURS = ("model_type", "pretrained_model_name_or_path", "model_task", "use_torch_compile", "torch_dtype", "use_cache")
_OURS += ("trust_remote_code", "gradient_checkpointing", "cross_sample_token_id", "pad_vocab_size_multiple")
_OURS += ("embd_layer", "cp_size", "tp_size")


def model_rules(given: DialectFile, native: NativeBuilder) -> None:
    """The model, whichever it is."""
    for key in ("model.model_task", f"{ARCHITECTURE}.head.head_cls"):
        if given[key] == "seq_cls":
            given.refuse(key, "seq_cls labels whole texts, and what is trained here predicts tokens; use causal_lm")
    if (given[PRETRAINED] or "").startswith("<"):
        given.refuse(PRETRAINED, "stands for a name; give the folder of a model, or its name on the hub")
    if given["model.use_torch_compile"]:
        native.set("train.compile", True, "model.use_torch_compile")
    mixformer = given["model.model_type"] == MIXFORMER
    if mixformer and (given.has("model.model_type") or not given.has(PRETRAINED)):
        _mixformer(given, native)
    else:
        _huggingface(given, native)


def _mixformer(given: DialectFile, native: NativeBuilder) -> None:
    native.set("model.kind", "transformer", "model.model_type")
    for key, path in PLAIN.items():
        if given[key] is not None:
            native.set(path, given[key], key)
    gated = given[f"{ARCHITECTURE}.mlp.mlp_cls"] == "gated"
    native.set("model.feedforward.bias", not gated, f"{ARCHITECTURE}.mlp.mlp_cls")
    width = given["model.n_inner"] or 4 * given["model.n_embd"]
    native.set("model.feedforward.width", width, "model.n_inner", "model.n_embd")
    bias = f"{MIXER}.bias" if given[f"{MIXER}.out_bias"] is None else f"{MIXER}.out_bias"
    native.set("model.attention.output_bias", given[bias], bias)
    _start(given, native)
    _attention(given, native)
    _positions(given, native)
    if given["model.gradient_checkpointing"]:
        native.set("train.activation_checkpointing", 1, "model.gradient_checkpointing")


def _start(given: DialectFile, native: NativeBuilder) -> None:
    """First weights: normal without a scale by depth, or those of a trained model."""
    if given.has(PRETRAINED):
        native.set("model.init", {"kind": "pretrained", "path": given[PRETRAINED]}, PRETRAINED)
        return
    native.set("model.init.kind", "normal", "model.model_type")
    native.set("model.init.std", given["model.initializer_range"], "model.initializer_range")
    native.set("model.init.scale_residual", False, "model.model_type")


def _attention(given: DialectFile, native: NativeBuilder) -> None:
    cross, causal = given["model.cross_sample_token_id"] is not None, given[f"{MIXER}.causal"]
    kind, masks = ("causal", ("causal", "causal_document")) if causal else ("bidirectional", ("full", "document"))
    native.set("model.attention.kind", kind, f"{MIXER}.causal")
    native.set("model.attention.mask", masks[cross], *(["model.cross_sample_token_id"] if cross else []))
    if given[f"{MIXER}.qk_norm"]:
        native.set("model.attention.qk_norm", "head", f"{MIXER}.qk_norm")
    window = given[f"{MIXER}.window_size"]
    if window is not None:
        native.set("model.attention.window", window + 1, f"{MIXER}.window_size")


def _positions(given: DialectFile, native: NativeBuilder) -> None:
    """Rotary positions of the first features of each head, learned ones, or both."""
    key, learned = "model.rotary_dim", given["model.embd_layer"] == "positional"
    turned = given[key]
    if turned is not None and turned < 0:
        native.set("model.position.kind", "learned" if learned else "none", key)
        return
    size = given[f"{MIXER}.head_dim"] or given["model.n_embd"] // given["model.n_head"]
    if turned and (turned > size or turned % 2):
        given.refuse(key, f"{turned} is no even number of features up to {size}, which a head has; lower it")
        return
    native.set("model.position.kind", "rope", key)
    native.set("model.position.theta", given[f"{MIXER}.rotary_base"], f"{MIXER}.rotary_base")
    if turned and turned != size:
        native.set("model.position.fraction", turned / size, key)
    if learned:
        native.set("model.position.learned", True, "model.embd_layer")
    _scaling(given, native)


def _scaling(given: DialectFile, native: NativeBuilder) -> None:
    key, factor_key = f"{MIXER}.rope_scaling", f"{MIXER}.rotary_scale_base"
    scaling = dict(given[key] or {})
    kind = scaling.pop("rope_type", scaling.pop("type", None))
    factor = scaling.pop("factor", given[factor_key] or 1.0)
    if kind not in ("yarn", "linear") and (given[key] or given.has(factor_key)):
        given.refuse(key if given.has(key) else factor_key, "needs rope_scaling.rope_type, which is yarn or linear")
        return
    if kind is None:
        return
    original = scaling.pop("original_max_position_embeddings", given["model.n_positions"])
    context = {"original_context": original} if kind == "yarn" else {}
    native.set("model.position.scaling", {"kind": kind, "factor": factor, **context, **scaling}, key)


def _huggingface(given: DialectFile, native: NativeBuilder) -> None:
    """A model of the transformers library, with what the file says replaced in its configuration."""
    name = PRETRAINED if given.has(PRETRAINED) else "model.model_type"
    native.set("model.kind", "huggingface", name)
    native.set("model.name_or_path", given[name], name)
    native.set("model.pretrained", name == PRETRAINED, name)
    if name != PRETRAINED and not local_path(given[name]).is_dir():
        native.set("model.config.model_type", given[name], name)
    if name != PRETRAINED and not given.has("model.vocab_size"):
        given.refuse("model.model_type", f"{given[name]} needs model.vocab_size: how many ids the data has")
    for key in given.within("model"):
        leaf = key.removeprefix("model.")
        if leaf in _OURS:
            continue
        spelled = given.place(key).key.split(", ")[0]
        if spelled.startswith(ARCHITECTURE):
            found = given.dialect.key(key)
            if not found.no_effect and given[key] not in (found.default, found.null, "causal_lm", "mean"):
                given.refuse(key, _of_mixformer(given, name))
            continue
        raw = lookup(given.document.values, path_of(spelled))
        native.set(f"model.config.{spelled.removeprefix('model.')}", raw, key)
    for leaf in ("trust_remote_code", "gradient_checkpointing"):
        if given[f"model.{leaf}"]:
            native.set(f"model.{leaf}", True, f"model.{leaf}")
    if given["model.cross_sample_token_id"] is not None:
        native.set("model.documents", True, "model.cross_sample_token_id")
    if given["model.embd_layer"] != "default":
        given.refuse("model.embd_layer", f"belongs to model_type: {MIXFORMER}; leave it out")


def _of_mixformer(given: DialectFile, name: str) -> str:
    """Why a key of the own architecture cannot be followed."""
    if name == PRETRAINED and not given.has("model.model_type"):
        return f"needs model_type: {MIXFORMER}, which is missing; add it if {given[name]} is such a model"
    return f"belongs to model_type: {MIXFORMER}, and {given[name]} is none; leave it out"
