"""What STLM's `model` keys say together: the transformer, or the model of Hugging Face's, and the tokenizer."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.datasets import source_of
from quintet.config.dialects.stlm.words import ON_THE_HUB, TIKTOKEN

RMS_EPS, LAYER_EPS = 1e-6, 1e-5
HEADS = ("model.attn.num_q_heads", "model.attn.num_kv_heads")
OF_BPE = ("tokenizer_dataset_name", "tokenizer_simplify", "tokenizer_num_reserved_tokens")
OF_INIT = {"gain": "xavier", "mode": "kaiming", "nonlinearity": "kaiming"}
OF_HF = ("model.model_string", "model.freeze_core", "model.use_lora", "model.lora_targets")
FOR_ANY_CORE = {
    *OF_HF,
    *(f"model.{name}" for name in ("core_model_type", "context_window", "model_shell_type", "flash_attention")),
    *(f"model.{name}" for name in ("embedding_model_type", "lm_head_type", "tokenizer_type", *OF_BPE)),
}
"""Keys that mean something with hf_core too."""


def model_rules(given: DialectFile, native: NativeBuilder) -> None:
    """The native model and tokenizer."""
    native.set("data.sequence_length", given["model.context_window"], "model.context_window")
    native.set("model.context_length", given["model.context_window"], "model.context_window")
    if given["model.core_model_type"] == "hf_core":
        _pretrained(given, native)
    else:
        _transformer(given, native)
        _tokenizer(given, native, given["model.tokenizer_type"])


def _transformer(given: DialectFile, native: NativeBuilder) -> None:
    native.set("model.kind", "transformer", "model.core_model_type", "model.model_shell_type")
    for path in OF_HF:
        if given.has(path):
            given.refuse(path, "is for core_model_type: hf_core; leave it out")
    for part, own in (("embedding_model_type", "hf_embedder"), ("lm_head_type", "hf_head")):
        if given[f"model.{part}"] == own:
            given.refuse(f"model.{part}", f"{own} goes with core_model_type: hf_core alone; set generic")
    needed = ["num_layers", "hidden_dim", "ffn.ffn_dim", "tokenizer_type"]
    missing = [name for name in needed if not given.has(f"model.{name}")]
    for name in missing:
        given.refuse(f"model.{name}", "is missing: core_model_type: generic needs it")
    if not any(given.has(path) for path in HEADS):
        given.refuse("model.attn.num_kv_heads", "is missing: core_model_type: generic needs it")
        return
    if missing:
        return
    for path, key in (
        ("layers", "num_layers"),
        ("width", "hidden_dim"),
        ("feedforward.width", "ffn.ffn_dim"),
        ("feedforward.kind", "ffn.ffn_type"),
        ("feedforward.bias", "ffn.bias"),
        ("feedforward.input_dropout", "ffn.ffn_dropout"),
        ("attention.bias", "attn.bias"),
        ("attention.input_dropout", "attn.attn_dropout"),
        ("embedding_dropout", "embedding_dropout"),
        ("head.bias", "lm_head_bias"),
        ("head.dropout", "lm_head_dropout"),
        ("tie_embeddings", "embedding_weight_tying"),
        ("tie_feedforward", "ffn_weight_tying"),
        ("tie_attention_output", "c_proj_weight_tying"),
    ):
        native.set(f"model.{path}", given[f"model.{key}"], f"model.{key}")
    _attention(given, native)
    _activation(given, native)
    _norms(given, native)
    _position(given, native)
    _init(given, native)


def _attention(given: DialectFile, native: NativeBuilder) -> None:
    kind, causal = given["model.attn.attn_type"], given["model.attn.is_causal"]
    if causal is not None and kind in ("causal", "bidirectional") and causal != (kind == "causal"):
        given.refuse("model.attn.is_causal", f"contradicts attn_type: {kind}; keep one of the two")
    both = kind == "bidirectional" or (causal is False and kind != "causal")
    native.set(
        "model.attention.kind", "bidirectional" if both else "causal", "model.attn.attn_type", "model.attn.is_causal"
    )
    if both and given["trainer.loss_fn.name"] == "next_token":
        native.say(
            "model.attn: attends to later positions too, and with loss_fn: cross_entropy the next token is among "
            "them; next_token_mlm hides what is to be predicted"
        )
    counts = [given[path] for path in HEADS if given[path] is not None]
    heads, kv_heads = max(counts), min(counts)
    if given.has("model.attn.group_size"):
        group = given["model.attn.group_size"]
        if len(counts) == 2 and heads != kv_heads * group:
            given.refuse("model.attn.group_size", f"{group} is not {heads} heads by {kv_heads}; keep one of them")
        elif heads % group:
            given.refuse("model.attn.group_size", f"{group} does not divide the {heads} heads")
        kv_heads = max(1, heads // group)
    native.set("model.attention.heads", heads, *HEADS)
    native.set("model.attention.kv_heads", kv_heads, *reversed(HEADS))
    if len(counts) == 2 and counts[0] < counts[1]:
        native.say(f"model.attn: {heads} query heads and {kv_heads} key and value heads; STLM's code had them swapped")
    if given["model.flash_attention"]:
        native.set("model.attention.backend", "flash", "model.flash_attention")


def _activation(given: DialectFile, native: NativeBuilder) -> None:
    path = "model.ffn.activation"
    if given["model.ffn.ffn_type"] == "plain":
        native.set("model.feedforward.activation", given[path], path)
        return
    native.set("model.feedforward.activation", "silu", "model.ffn.ffn_type")
    if given.has(path) and given[path] != "silu":
        native.say("model.ffn.activation: ffn_type: silu_ffn has silu, whatever it says")


def _norms(given: DialectFile, native: NativeBuilder) -> None:
    """One norm for the model where its three places have the same, else one for each."""
    places = {
        "attention": ("model.attn.normalization", "model.attn.bias"),
        "feedforward": ("model.ffn.normalization", "model.ffn.bias"),
        "head": ("model.lm_head_normalization", "model.lm_head_bias"),
    }
    norms = {place: _norm(given[kind], given[bias]) for place, (kind, bias) in places.items()}
    native.set("model.norm", norms["attention"], *places["attention"])
    for place in ("feedforward", "head"):
        if norms[place] != norms["attention"]:
            native.set(f"model.{place}.norm", norms[place], *places[place])


def _norm(kind: str, bias: bool) -> dict[str, Any]:
    if kind == "rms":
        return {"kind": "rms", "eps": RMS_EPS}
    return {"kind": "layer", "eps": LAYER_EPS, "bias": bias} if kind == "layer" else {"kind": "none"}


def _position(given: DialectFile, native: NativeBuilder) -> None:
    path = "model.positional_encoding_type"
    kind, turned = given[path], given["model.attn.attn_type"] == "rope"
    if kind is None and not turned and not given.has(path):
        given.refuse(path, "is missing: core_model_type: generic needs it")
        return
    if turned and kind == "sinusoidal":
        given.refuse(path, "sincos does not go with attn: rope_attention here; set none or learned")
    if not turned and kind != "rope":
        native.set("model.position", {"kind": kind}, path)
        return
    rope = {"kind": "rope", "theta": 10_000.0, "pairs": "interleaved", "learned": kind == "learned"}
    native.set("model.position", rope, "model.attn.attn_type" if turned else path)


def _init(given: DialectFile, native: NativeBuilder) -> None:
    kind = given["model.initialization_fn"]
    native.set("model.init.kind", kind, "model.initialization_fn")
    for name, owner in OF_INIT.items():
        path = f"model.{name}"
        if owner == kind:
            native.set(f"model.init.{name}", given[path], path)
        elif given.has(path):
            given.refuse(path, f"is for initialization_fn: {owner}, and it is {kind}; leave it out")


def _pretrained(given: DialectFile, native: NativeBuilder) -> None:
    if not given.has("model.model_string"):
        given.refuse("model.model_string", "is missing: core_model_type: hf_core needs the name of a checkpoint")
        return
    native.set("model.kind", "huggingface", "model.core_model_type")
    native.set("model.name_or_path", given["model.model_string"], "model.model_string")
    if given["model.use_lora"]:
        native.set("model.lora", {"rank": 8, "alpha": 32.0, "dropout": 0.1}, "model.use_lora")
        if given.has("model.lora_targets"):
            native.set("model.lora.targets", given["model.lora_targets"], "model.lora_targets")
    elif given["model.freeze_core"]:
        native.set("model.freeze", "core", "model.freeze_core")
    if given["model.flash_attention"]:
        native.set("model.attention_backend", "flash_attention_2", "model.flash_attention")
    unread = [path for path in given.within("model") if path not in FOR_ANY_CORE]
    if unread:
        native.say(f"{', '.join(unread)}: the checkpoint of core_model_type: hf_core says this itself")
    kind = given["model.tokenizer_type"]
    if given["model.embedding_model_type"] == "generic" or given["model.lm_head_type"] == "generic":
        native.say("model: embedding and head are those of the checkpoint, and learn also where its core is frozen")
    if kind in (None, "hf") or given["model.embedding_model_type"] == "hf_embedder":
        native.set("tokenizer", {"kind": "huggingface", "path": given["model.model_string"]}, "model.model_string")
        return
    _tokenizer(given, native, kind)


def _tokenizer(given: DialectFile, native: NativeBuilder, kind: str | None) -> None:
    path = "model.tokenizer_type"
    if kind is None:
        return
    if kind == "hf":
        given.refuse(path, "is the tokenizer of the checkpoint of core_model_type: hf_core; name another one")
    if kind != "bpe" and given["model.core_model_type"] == "generic" and given.has("model.vocab_size"):
        native.set("model.vocab_size", given["model.vocab_size"], "model.vocab_size")
    if kind in TIKTOKEN:
        native.set("tokenizer", {"kind": "tiktoken", "name": kind}, path)
    elif kind in ON_THE_HUB:
        native.set("tokenizer", {"kind": "huggingface", "path": ON_THE_HUB[kind]}, path)
    elif kind == "bpe":
        _bpe(given, native)
        return
    unread = [f"model.{name}" for name in OF_BPE if given.has(f"model.{name}")]
    if unread:
        native.say(f"{', '.join(unread)}: read with tokenizer_type: bpe alone")


def _bpe(given: DialectFile, native: NativeBuilder) -> None:
    if not given.has("model.vocab_size"):
        given.refuse("model.vocab_size", "is missing: tokenizer_type: bpe needs it")
        return
    size, reserved = given["model.vocab_size"], given["model.tokenizer_num_reserved_tokens"]
    native.set("tokenizer.kind", "bpe", "model.tokenizer_type")
    native.set("tokenizer.vocab_size", size - reserved, "model.vocab_size", "model.tokenizer_num_reserved_tokens")
    if given["model.core_model_type"] == "generic":
        native.set("model.vocab_size", size, "model.vocab_size")
    native.set("tokenizer.simplify", given["model.tokenizer_simplify"], "model.tokenizer_simplify")
    path = "model.tokenizer_dataset_name"
    names = given[path]
    if names is None or names == given["trainer.dataset"]:
        return
    native.set("tokenizer.sources", sources(given, path), path)


def sources(given: DialectFile, path: str) -> list[dict[str, Any]]:
    """The native sources of the datasets that the key ``path`` names."""
    found = []
    for name in given[path]:
        try:
            found.append(source_of(name))
        except ValueError as error:
            given.refuse(path, str(error))
    return found
