"""Rules for the model and the tokenizer of an STLM file."""

from collections.abc import Iterable
from typing import Any

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.schema import File
from quintet.config.dialects.stlm.values import EXPERIMENT, HUB_TOKENIZERS, TIKTOKEN, dataset_sources
from quintet.errors import NotHere

OF_INIT = {"gain": "xavier", "mode": "kaiming", "nonlinearity": "kaiming"}
_EPS = {"rms": 1e-6, "layer": 1e-5}
_HEADS = ("model.attn.num_q_heads", "model.attn.num_kv_heads")
_REQUIRED = ("num_layers", "hidden_dim", "ffn.ffn_dim", "tokenizer_type")
_OF_BPE = ("tokenizer_dataset_name", "tokenizer_simplify", "tokenizer_num_reserved_tokens")
_OF_HF = ("model_string", "freeze_core", "use_lora", "lora_targets")
_READ_WITH_HF = (
    *(*_OF_HF, *_OF_BPE, "core_model_type", "context_window", "model_shell_type", "flash_attention"),
    *("embedding_model_type", "lm_head_type", "tokenizer_type"),
)
_TIED = {
    "model.tie_feedforward": ("generic_ffn_sharing", "generic_ffn_qproj_sharing"),
    "model.tie_attention_output": ("generic_cproj_shared", "generic_ffn_qproj_sharing"),
}
_LOW_RANK = ("ffn_lora_sharing", "weight_sharing")
_OF_CHECKPOINT = "core_model_type: hf_core keeps the embedding, the head and the tokenizer of its checkpoint"
_TRAINED = ("bpe", "bpe-retrain")


def set_transformer(theirs: File, native: NativeBuilder) -> None:
    """Set a model of STLM's own parts."""
    model = theirs.model
    native.set("model.kind", "transformer", "model.core_model_type", "model.model_shell_type")
    for name in _OF_HF:
        if native.has(f"model.{name}"):
            native.refuse(f"model.{name}", "is for core_model_type: hf_core; leave it out")
    for key, part in (("embedding_model_type", model.embedding_model_type), ("lm_head_type", model.lm_head_type)):
        if part.startswith("hf_"):
            native.refuse(f"model.{key}", f"{part} works with core_model_type: hf_core only; set generic")
    missing = [name for name in _REQUIRED if not native.has(f"model.{name}")]
    has_heads = any(map(native.has, _HEADS))
    for name in missing if has_heads else [*missing, "attn.num_kv_heads"]:
        native.refuse(f"model.{name}", "is missing: core_model_type: generic needs it")
    if model.embedding_dim not in (None, model.hidden_dim) and model.embedding_model_type != "bytes":
        native.refuse("model.embedding_dim", EXPERIMENT)
    _set_sharing(theirs, native)
    if has_heads:
        _set_attention(theirs, native)
    if model.ffn.ffn_type == "gated":
        native.set("model.feedforward.activation", "silu", "model.ffn.ffn_type")
        if native.has("model.ffn.activation") and model.ffn.activation != "silu":
            native.say("model.ffn.activation: not read, because ffn_type: silu_ffn always has silu")
    _set_norms(theirs, native)
    _set_position(theirs, native)
    for name, owner in OF_INIT.items():
        if owner == model.initialization_fn:
            native.set(f"model.init.{name}", getattr(model, name), f"model.{name}")
        elif native.has(f"model.{name}"):
            message = f"is for initialization_fn: {owner}, and it is {model.initialization_fn}"
            if owner == "kaiming":  # STLM's files keep its keys when they choose another initialization
                native.say(f"model.{name}: not read; it {message}")
            else:
                native.refuse(f"model.{name}", f"{message}; leave it out")


def _set_sharing(theirs: File, native: NativeBuilder) -> None:
    """Set which weights the blocks share because of core_model_type."""
    model, key = theirs.model, "model.core_model_type"
    kind = model.core_model_type
    for tie, types in _TIED.items():
        if kind in types:
            native.set(tie, True, key)
    interior, rank, alpha = (f"model.{name}" for name in ("k_interior_layers", "lora_rank", "lora_alpha"))
    if kind not in _LOW_RANK:
        if unread := [path for path in (interior, rank, alpha) if native.has(path)]:
            native.say(f"{', '.join(unread)}: read with core_model_type: {' or '.join(_LOW_RANK)} only")
        return
    if model.k_interior_layers is None:
        native.refuse(interior, f"is missing: core_model_type: {kind} needs it")
        return
    low_rank, same = ["feedforward"], ["attention_output"] if kind == "ffn_lora_sharing" else []
    if model.lora_rank is None:
        low_rank, same = [], [*same, "feedforward"]
    else:
        native.set("model.sharing.rank", model.lora_rank, rank)
    for section, part, bias in (("ffn", "feedforward", model.ffn.bias), ("attn", "attention_output", model.attn.bias)):
        if part in same and bias:
            native.refuse(f"model.{section}.bias", f"{kind} shares matrices without their biases, and Quintet both")
    native.set("model.sharing.same", same, key)
    native.set("model.sharing.low_rank", low_rank, key)
    native.set("model.sharing.first_blocks", 1 + model.k_interior_layers, interior)
    native.set("model.sharing.last_blocks", model.k_interior_layers, interior)
    if kind == "weight_sharing":  # unscaled, and with biases
        native.set("model.sharing.bias", bool(low_rank), key)
    elif model.lora_rank is not None:
        native.set("model.sharing.alpha", 1.0 if model.lora_alpha is None else model.lora_alpha, alpha, key)


def _set_attention(theirs: File, native: NativeBuilder) -> None:
    attn = theirs.model.attn
    kind, causal = attn.attn_type, attn.is_causal
    if causal is not None and kind in ("causal", "bidirectional") and causal != (kind == "causal"):
        native.refuse("model.attn.is_causal", f"contradicts attn_type: {kind}; keep one of the two")
    bidirectional = kind == "bidirectional" or (causal is False and kind != "causal")
    keys = ("model.attn.attn_type", "model.attn.is_causal")
    native.set("model.attention.kind", "bidirectional" if bidirectional else "causal", *keys)
    if bidirectional and theirs.trainer.loss_fn.name == "next_token" and theirs.trainer.dataloader.name != "mlm":
        native.say(
            "model.attn: attends to later positions too, and with loss_fn: cross_entropy the next token is among "
            "them; next_token_mlm hides the tokens to predict"
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
    native.set("model.attention.heads", heads, *_HEADS)
    native.set("model.attention.kv_heads", kv_heads, *reversed(_HEADS))
    _set_head_size(theirs, heads, native)
    if len(counts) == 2 and counts[0] < counts[1]:
        native.say(f"model.attn: {heads} query heads and {kv_heads} key and value heads; STLM's code has them swapped")
    if theirs.model.flash_attention:
        native.set("model.attention.backend", "flash", "model.flash_attention")


def _set_head_size(theirs: File, heads: int, native: NativeBuilder) -> None:
    """Drop the last feature of heads of an odd size, because rotary positions rotate pairs of features."""
    model, width = theirs.model, theirs.model.hidden_dim or 0
    rotary = "rope" in (model.attn.attn_type, model.positional_encoding_type)
    size, rest = divmod(width, heads)
    if model.attn.head_dim is None and rotary and rest == 0 and size > 1 and size % 2:
        native.set("model.attention.head_dim", size - 1, *_HEADS, "model.hidden_dim")
        native.say(
            f"model.attn: {width} features in {heads} heads are {size} each; a head has {size - 1}, as in STLM, "
            "because rotary positions rotate pairs of them"
        )


def _set_norms(theirs: File, native: NativeBuilder) -> None:
    """Set the norm of attention as the model's, and those of feed-forward network and head if they differ."""
    model, ffn, attn = theirs.model, theirs.model.ffn, theirs.model.attn
    key = "model.norm_bias"  # in the oldest files, for both norms of a block
    biases = [part.bias if model.norm_bias is None else model.norm_bias for part in (attn, ffn)]
    usual, feedforward = _norm(attn.normalization, biases[0]), _norm(ffn.normalization, biases[1])
    head = _norm(model.lm_head_normalization, model.lm_head_bias)
    native.set("model.norm", usual, "model.attn.normalization", "model.attn.bias", key)
    if feedforward != usual:
        native.set("model.feedforward.norm", feedforward, "model.ffn.normalization", "model.ffn.bias", key)
    if head != usual:
        native.set("model.head.norm", head, "model.lm_head_normalization", "model.lm_head_bias")


def _norm(kind: str, bias: bool) -> dict[str, Any]:
    eps = {"eps": _EPS[kind]} if kind in _EPS else {}
    return {"kind": kind, **eps} | ({"bias": bias} if kind == "layer" else {})


def _set_position(theirs: File, native: NativeBuilder) -> None:
    key, kind = "model.positional_encoding_type", theirs.model.positional_encoding_type
    rotary = theirs.model.attn.attn_type == "rope"  # attention rotates queries and keys itself
    if kind is None and not rotary:
        native.refuse(key, "is missing: core_model_type: generic needs it")
    elif rotary and kind == "sinusoidal":
        native.refuse(key, "sincos does not work with attn: rope_attention here; set none or learned")
    elif not rotary and kind != "rope":
        native.set("model.position", {"kind": kind}, key)
    else:
        rope = {"kind": "rope", "theta": 10_000.0, "pairs": "interleaved", "learned": kind == "learned"}
        native.set("model.position", rope, "model.attn.attn_type" if rotary else key)


def set_pretrained(theirs: File, native: NativeBuilder) -> None:
    """Set `hf_core`: a whole model from Hugging Face, and its tokenizer."""
    model = theirs.model
    if model.model_string is None:
        native.refuse("model.model_string", "is missing: core_model_type: hf_core needs the name of a checkpoint")
        return
    native.set("model", {"kind": "huggingface"}, "model.core_model_type")  # replaces the keys of a transformer
    native.set("model.name_or_path", model.model_string, "model.model_string")
    if model.use_lora:
        native.set("model.lora", {"rank": 8, "alpha": 32.0, "dropout": 0.1}, "model.use_lora")
        if model.lora_targets is not None:
            native.set("model.lora.targets", list(model.lora_targets), "model.lora_targets")
    elif model.freeze_core:
        native.set("model.freeze", "core", "model.freeze_core")
    if model.flash_attention:
        native.set("model.attention_backend", "flash_attention_2", "model.flash_attention")
    unread = [key for key in native.within("model") if key.removeprefix("model.") not in _READ_WITH_HF]
    if unread:
        native.say(f"{', '.join(unread)}: not read, because core_model_type: hf_core takes it from its checkpoint")
    parts = {"embedding_model_type": model.embedding_model_type, "lm_head_type": model.lm_head_type}
    new = [f"model.{name}" for name, part in parts.items() if native.has(f"model.{name}") and part[:3] != "hf_"]
    if new:
        native.refuse(new[0], f"{_OF_CHECKPOINT}; set embedding_model_type: hf_embedder and lm_head_type: hf_head")
    if model.tokenizer_type not in (None, "hf"):
        if not native.has("model.embedding_model_type"):
            native.refuse("model.tokenizer_type", f"{_OF_CHECKPOINT}; leave it out")
        elif model.embedding_model_type == "hf_embedder":
            native.say("model.tokenizer_type: not read, because hf_embedder has the tokenizer of its checkpoint")
    native.set("tokenizer", {"kind": "huggingface", "path": model.model_string}, "model.model_string")


def set_tokenizer(theirs: File, native: NativeBuilder) -> None:
    """Set the tokenizer, and the rows of embedding and head."""
    model, key = theirs.model, "model.tokenizer_type"
    kind, rows = model.tokenizer_type, model.vocab_size
    if rows is not None:
        native.set("model.vocab_size", rows, "model.vocab_size")
    if kind == "hf":
        native.refuse(key, "hf is the tokenizer of the checkpoint of core_model_type: hf_core; name another one")
    elif kind in _TRAINED and rows is None:
        native.refuse("model.vocab_size", f"is missing: tokenizer_type: {kind} needs it")
    elif kind in _TRAINED and rows is not None:
        native.set("tokenizer.kind", "bpe", key)
        size = rows - model.tokenizer_num_reserved_tokens
        native.set("tokenizer.vocab_size", size, "model.vocab_size", "model.tokenizer_num_reserved_tokens")
        if kind == "bpe":
            native.set("tokenizer.simplify", model.tokenizer_simplify, "model.tokenizer_simplify")
        elif native.has("model.tokenizer_simplify"):
            native.say("model.tokenizer_simplify: not read, because bpe-retrain keeps all characters")
        names, path = model.tokenizer_dataset_name, "model.tokenizer_dataset_name"
        if names is not None and names != theirs.trainer.dataset:
            native.set("tokenizer.sources", native_sources(native, names, path), path)
    elif kind in TIKTOKEN:
        native.set("tokenizer", {"kind": "tiktoken", "name": kind}, key)
    elif kind in HUB_TOKENIZERS:
        native.set("tokenizer", {"kind": "huggingface", "path": HUB_TOKENIZERS[kind]}, key)
    unread = [f"model.{name}" for name in _OF_BPE if kind not in (None, *_TRAINED) and native.has(f"model.{name}")]
    if unread:
        native.say(f"{', '.join(unread)}: read with tokenizer_type: bpe or bpe-retrain only")


def native_sources(native: NativeBuilder, names: Iterable[str], key: str) -> list[dict[str, Any]]:
    """Return the native sources of the datasets ``names``, which ``key`` gives; refuse names that cannot be read."""
    sources: list[dict[str, Any]] = []
    for name in names:
        try:
            sources += dataset_sources(name)
        except ValueError as error:
            native.refuse(key, str(error))
        except NotHere as missing:
            native.lack(key, str(missing))
            sources.append({"kind": "text", "path": name})
    return sources
