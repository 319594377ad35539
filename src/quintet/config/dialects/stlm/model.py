"""Rules for the keys of STLM's model and its tokenizer that depend on each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.names import EXPERIMENT, ON_THE_HUB, TIKTOKEN, dataset_sources
from quintet.config.dialects.stlm.schema import File
from quintet.errors import NotHere

RMS_EPS, LAYER_EPS = 1e-6, 1e-5
HEADS = ("model.attn.num_q_heads", "model.attn.num_kv_heads")
NEEDED = ("num_layers", "hidden_dim", "ffn.ffn_dim", "tokenizer_type")
OF_BPE = ("tokenizer_dataset_name", "tokenizer_simplify", "tokenizer_num_reserved_tokens")
OF_HF = ("model_string", "freeze_core", "use_lora", "lora_targets")
OF_EITHER = (
    *("core_model_type", "context_window", "model_shell_type", "flash_attention", "embedding_model_type"),
    *("lm_head_type", "tokenizer_type", *OF_BPE),
)
TIED = {
    "model.tie_feedforward": ("generic_ffn_sharing", "generic_ffn_qproj_sharing"),
    "model.tie_attention_output": ("generic_cproj_shared", "generic_ffn_qproj_sharing"),
}
OF_CHECKPOINT = "core_model_type: hf_core keeps the embedding, the head and the tokenizer of its checkpoint"
TRAINED = ("bpe", "bpe-retrain")
LOW_RANK = ("ffn_lora_sharing", "weight_sharing")
OF_INIT = {"gain": "xavier", "mode": "kaiming", "nonlinearity": "kaiming"}


def sources(native: NativeBuilder, names: Iterable[str], key: str) -> list[dict[str, Any]]:
    """The native sources of the datasets ``names``, which ``key`` gives."""
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            found += dataset_sources(name)
        except ValueError as error:
            native.refuse(key, str(error))
        except NotHere as missing:
            native.lack(key, str(missing))
            found.append({"kind": "text", "path": name})
    return found


def transformer(theirs: File, native: NativeBuilder) -> None:
    """Translate a model of STLM's own parts."""
    model = theirs.model
    native.set("model.kind", "transformer", "model.core_model_type", "model.model_shell_type")
    for name in OF_HF:
        if native.has(f"model.{name}"):
            native.refuse(f"model.{name}", "is for core_model_type: hf_core; leave it out")
    for key, part in (("embedding_model_type", model.embedding_model_type), ("lm_head_type", model.lm_head_type)):
        if part.startswith("hf_"):
            native.refuse(f"model.{key}", f"{part} goes with core_model_type: hf_core alone; set generic")
    missing = [name for name in NEEDED if not native.has(f"model.{name}")]
    headed = any(map(native.has, HEADS))
    for name in missing if headed else [*missing, "attn.num_kv_heads"]:
        native.refuse(f"model.{name}", "is missing: core_model_type: generic needs it")
    if model.embedding_dim not in (None, model.hidden_dim) and model.embedding_model_type != "bytes":
        native.refuse("model.embedding_dim", EXPERIMENT)
    _sharing(theirs, native)
    if headed:
        _attention(theirs, native)
    if model.ffn.ffn_type == "gated":
        native.set("model.feedforward.activation", "silu", "model.ffn.ffn_type")
        if native.has("model.ffn.activation") and model.ffn.activation != "silu":
            native.say("model.ffn.activation: ffn_type: silu_ffn has silu, whatever it says")
    _norms(theirs, native)
    _position(theirs, native)
    for name, owner in OF_INIT.items():
        if owner == model.initialization_fn:
            native.set(f"model.init.{name}", getattr(model, name), f"model.{name}")
        elif native.has(f"model.{name}"):
            message = f"is for initialization_fn: {owner}, and it is {model.initialization_fn}"
            if owner == "kaiming":  # real files keep its keys beside another way to start
                native.say(f"model.{name}: {message}, which leaves it unread")
                continue
            native.refuse(f"model.{name}", f"{message}; leave it out")


def _sharing(theirs: File, native: NativeBuilder) -> None:
    """The parts that blocks share by the core's type, beside what `ffn_weight_tying` and `cproj_weight_tying` say."""
    model, key = theirs.model, "model.core_model_type"
    kind = model.core_model_type
    for tie, types in TIED.items():
        if kind in types:
            native.set(tie, True, key)
    own = [f"model.{name}" for name in ("k_interior_layers", "lora_rank", "lora_alpha")]
    if kind not in LOW_RANK:
        if given := [path for path in own if native.has(path)]:
            native.say(f"{', '.join(given)}: read with core_model_type: {' or '.join(LOW_RANK)} alone")
        return
    if model.k_interior_layers is None:
        native.refuse(own[0], f"is missing: core_model_type: {kind} needs it")
        return
    low_rank, same = ["feedforward"], ["attention_output"] if kind == "ffn_lora_sharing" else []
    if model.lora_rank is None:
        low_rank, same = [], [*same, "feedforward"]
    else:
        native.set("model.sharing.rank", model.lora_rank, own[1])
    for section in ("ffn", "attn"):
        part = {"ffn": "feedforward", "attn": "attention_output"}[section]
        if part in same and getattr(model, section).bias:
            native.refuse(f"model.{section}.bias", f"{kind} shares matrices and no biases, which go with them here")
    native.set("model.sharing.same", same, key)
    native.set("model.sharing.low_rank", low_rank, key)
    native.set("model.sharing.first_blocks", 1 + model.k_interior_layers, own[0])
    native.set("model.sharing.last_blocks", model.k_interior_layers, own[0])
    if kind == "weight_sharing":  # unscaled, and with biases
        native.set("model.sharing.bias", bool(low_rank), key)
    elif model.lora_rank is not None:
        native.set("model.sharing.alpha", 1.0 if model.lora_alpha is None else model.lora_alpha, own[2], key)


def _attention(theirs: File, native: NativeBuilder) -> None:
    attn = theirs.model.attn
    kind, causal = attn.attn_type, attn.is_causal
    if causal is not None and kind in ("causal", "bidirectional") and causal != (kind == "causal"):
        native.refuse("model.attn.is_causal", f"contradicts attn_type: {kind}; keep one of the two")
    both = kind == "bidirectional" or (causal is False and kind != "causal")
    keys = ("model.attn.attn_type", "model.attn.is_causal")
    native.set("model.attention.kind", "bidirectional" if both else "causal", *keys)
    if both and theirs.trainer.loss_fn.name == "next_token" and theirs.trainer.dataloader.name != "mlm":
        native.say(
            "model.attn: attends to later positions too, and with loss_fn: cross_entropy the next token is among "
            "them; next_token_mlm hides what is to be predicted"
        )
    counts = [count for count in (attn.num_q_heads, attn.num_kv_heads) if count is not None]
    heads, kv_heads = max(counts), min(counts)
    if attn.group_size is not None:
        if len(counts) == 2 and heads != kv_heads * attn.group_size:
            message = f"{attn.group_size} is not {heads} heads by {kv_heads}; keep one of them"
            native.refuse("model.attn.group_size", message)
        elif heads % attn.group_size:
            native.refuse("model.attn.group_size", f"{attn.group_size} does not divide the {heads} heads")
        kv_heads = max(1, heads // attn.group_size)
    native.set("model.attention.heads", heads, *HEADS)
    native.set("model.attention.kv_heads", kv_heads, *reversed(HEADS))
    _head_size(theirs, heads, native)
    if len(counts) == 2 and counts[0] < counts[1]:
        native.say(f"model.attn: {heads} query heads and {kv_heads} key and value heads; STLM's code had them swapped")
    if theirs.model.flash_attention:
        native.set("model.attention.backend", "flash", "model.flash_attention")


def _head_size(theirs: File, heads: int, native: NativeBuilder) -> None:
    """Leave out the last feature of heads that have an odd number of them, which rotary positions turn in pairs."""
    model, width = theirs.model, theirs.model.hidden_dim or 0
    turned = "rope" in (model.attn.attn_type, model.positional_encoding_type)
    size, rest = divmod(width, heads)
    if model.attn.head_dim is None and turned and rest == 0 and size > 1 and size % 2:
        native.set("model.attention.head_dim", size - 1, *HEADS, "model.hidden_dim")
        native.say(
            f"model.attn: a head of {width} / {heads} features would have {size}, and has {size - 1}, for rotary "
            "positions turn pairs of them, as in STLM's files with such heads"
        )


def _norms(theirs: File, native: NativeBuilder) -> None:
    """One norm for the model where its three parts have the same, else one for each."""
    model, ffn, attn = theirs.model, theirs.model.ffn, theirs.model.attn
    own = "model.norm_bias"  # of the oldest files, for both norms of a block
    biases = [part.bias if model.norm_bias is None else model.norm_bias for part in (attn, ffn)]
    usual, feedforward = _norm(attn.normalization, biases[0]), _norm(ffn.normalization, biases[1])
    head = _norm(model.lm_head_normalization, model.lm_head_bias)
    native.set("model.norm", usual, "model.attn.normalization", "model.attn.bias", own)
    if feedforward != usual:
        native.set("model.feedforward.norm", feedforward, "model.ffn.normalization", "model.ffn.bias", own)
    if head != usual:
        native.set("model.head.norm", head, "model.lm_head_normalization", "model.lm_head_bias")


def _norm(kind: str, bias: bool) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {"rms": {"eps": RMS_EPS}, "layer": {"eps": LAYER_EPS, "bias": bias}}
    return {"kind": kind, **values.get(kind, {})}


def _position(theirs: File, native: NativeBuilder) -> None:
    key, kind = "model.positional_encoding_type", theirs.model.positional_encoding_type
    turned = theirs.model.attn.attn_type == "rope"  # attention turns queries and keys itself
    if kind is None and not turned:
        native.refuse(key, "is missing: core_model_type: generic needs it")
    elif turned and kind == "sinusoidal":
        native.refuse(key, "sincos does not go with attn: rope_attention here; set none or learned")
    elif not turned and kind != "rope":
        native.set("model.position", {"kind": kind}, key)
    else:
        rope = {"kind": "rope", "theta": 10_000.0, "pairs": "interleaved", "learned": kind == "learned"}
        native.set("model.position", rope, "model.attn.attn_type" if turned else key)


def pretrained(theirs: File, native: NativeBuilder) -> None:
    """Translate `hf_core`, a model of Hugging Face's with all its parts, and its tokenizer."""
    model = theirs.model
    if model.model_string is None:
        native.refuse("model.model_string", "is missing: core_model_type: hf_core needs the name of a checkpoint")
        return
    native.set("model", {"kind": "huggingface"}, "model.core_model_type")  # in place of what a transformer has
    native.set("model.name_or_path", model.model_string, "model.model_string")
    if model.use_lora:
        native.set("model.lora", {"rank": 8, "alpha": 32.0, "dropout": 0.1}, "model.use_lora")
        if model.lora_targets is not None:
            native.set("model.lora.targets", list(model.lora_targets), "model.lora_targets")
    elif model.freeze_core:
        native.set("model.freeze", "core", "model.freeze_core")
    if model.flash_attention:
        native.set("model.attention_backend", "flash_attention_2", "model.flash_attention")
    unread = [key for key in native.within("model") if key.removeprefix("model.") not in (*OF_HF, *OF_EITHER)]
    if unread:
        native.say(f"{', '.join(unread)}: the checkpoint of core_model_type: hf_core says this itself")
    parts = {"embedding_model_type": model.embedding_model_type, "lm_head_type": model.lm_head_type}
    new = [f"model.{name}" for name, part in parts.items() if native.has(f"model.{name}") and part[:3] != "hf_"]
    if new:
        native.refuse(new[0], f"{OF_CHECKPOINT}; set embedding_model_type: hf_embedder and lm_head_type: hf_head")
    if model.tokenizer_type not in (None, "hf"):
        if not native.has("model.embedding_model_type"):
            native.refuse("model.tokenizer_type", f"{OF_CHECKPOINT}; leave it out")
        elif model.embedding_model_type == "hf_embedder":
            native.say("model.tokenizer_type: hf_embedder has the tokenizer of its checkpoint, whatever it says")
    native.set("tokenizer", {"kind": "huggingface", "path": model.model_string}, "model.model_string")


def tokenizer(theirs: File, native: NativeBuilder) -> None:
    """Translate `tokenizer_type` and what belongs to it."""
    model, key = theirs.model, "model.tokenizer_type"
    kind, rows = model.tokenizer_type, model.vocab_size
    if rows is not None:
        native.set("model.vocab_size", rows, "model.vocab_size")
    if kind == "hf":
        native.refuse(key, "is the tokenizer of the checkpoint of core_model_type: hf_core; name another one")
    elif kind in TRAINED and rows is None:
        native.refuse("model.vocab_size", f"is missing: tokenizer_type: {kind} needs it")
    elif kind in TRAINED and rows is not None:
        native.set("tokenizer.kind", "bpe", key)
        size = rows - model.tokenizer_num_reserved_tokens
        native.set("tokenizer.vocab_size", size, "model.vocab_size", "model.tokenizer_num_reserved_tokens")
        if kind == "bpe":
            native.set("tokenizer.simplify", model.tokenizer_simplify, "model.tokenizer_simplify")
        elif native.has("model.tokenizer_simplify"):
            native.say("model.tokenizer_simplify: bpe-retrain keeps all characters, whatever it says")
        names, path = model.tokenizer_dataset_name, "model.tokenizer_dataset_name"
        if names is not None and names != theirs.trainer.dataset:
            native.set("tokenizer.sources", sources(native, names, path), path)
    elif kind in TIKTOKEN:
        native.set("tokenizer", {"kind": "tiktoken", "name": kind}, key)
    elif kind in ON_THE_HUB:
        native.set("tokenizer", {"kind": "huggingface", "path": ON_THE_HUB[kind]}, key)
    unread = [f"model.{name}" for name in OF_BPE if kind not in (None, *TRAINED) and native.has(f"model.{name}")]
    if unread:
        native.say(f"{', '.join(unread)}: read with tokenizer_type: bpe or bpe-retrain alone")
