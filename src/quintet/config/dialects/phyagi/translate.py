"""Rules for PhyAGI's data and models: sources of token arrays, the transformer for mixformer-sequential, and models
of the transformers library; `trainers` has the rules of training."""

from __future__ import annotations

from pathlib import Path

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.back import back, writes
from quintet.config.dialects.phyagi.schema import MIXFORMER, Dataset, File
from quintet.config.dialects.phyagi.shape import shape
from quintet.config.dialects.phyagi.trainers import training_rules
from quintet.config.keypath import lookup, path_of, show
from quintet.config.names import local_path

ARCHITECTURE = "model.architecture"
MIXER = f"{ARCHITECTURE}.mixer"
PRETRAINED = "model.pretrained_model_name_or_path"
_OURS = (
    *("model_type", "pretrained_model_name_or_path", "model_task", "use_torch_compile", "torch_dtype", "use_cache"),
    *("trust_remote_code", "gradient_checkpointing", "cross_sample_token_id", "pad_vocab_size_multiple"),
    *("embd_layer", "cp_size", "tp_size"),
)
"""Keys of a model that its configuration in the transformers library does not have."""


def _rules(theirs: File, native: NativeBuilder) -> None:
    _data(theirs, native)
    _model(theirs, native)
    training_rules(theirs, native)


def _data(theirs: File, native: NativeBuilder) -> None:
    """Sources, tokenizer, order, and what has a loss."""
    if not theirs.dataset:
        native.refuse("dataset", "is missing: name at least one dataset with cache_dir or train_file")
        return
    if theirs.dataset_provider == "chat":
        native.refuse("dataset_provider", "chat is for reinforcement learning, which there is none of here; use lm")
    for name, value in (("dataset", theirs.dataset_concat), ("eval_dataset", theirs.eval_dataset_concat)):
        if value == "random_chat":
            native.refuse(f"{name}_concat", "random_chat is for dataset_provider: chat; use random")
    if theirs.dataset_collator.cls == "chat":
        native.refuse("dataset_collator.cls", "chat is for dataset_provider: chat; use lm")
    for index, entry in enumerate(theirs.dataset):
        _source(theirs, native, entry, index)
    _validation(theirs, native)
    _samples(theirs, native)
    _tokenizer(theirs, native)
    _loss(theirs, native)


def _train_path(native: NativeBuilder, entry: Dataset, index: int) -> tuple[str, str]:
    """File of dataset ``index`` to train on, and the key that says so; both empty, and said, where none does."""
    files = {"cache_dir": entry.cache_dir, "train_file": entry.train_file, "dataset_path": entry.dataset_path}
    named = [(name, local_path(value)) for name, value in files.items() if value is not None]
    if not named:
        native.refuse(f"dataset[{index}]", "names no data; give cache_dir or train_file")
        return "", ""
    name, path = named[0]
    if len(named) > 1:
        message = f"cannot be given together with {name}, which names the same; keep one"
        native.refuse(f"dataset[{index}].{named[1][0]}", message)
    folder = name == "cache_dir" and path.suffix != ".npy"
    return str(path / "train.npy" if folder else path), f"dataset[{index}].{name}"


def _source(theirs: File, native: NativeBuilder, entry: Dataset, index: int) -> None:
    source, at = f"data.sources[{index}]", f"dataset[{index}]"
    path, key = _train_path(native, entry, index)
    if not path:
        return
    native.set(f"{source}.kind", "npy", key)
    native.set(f"{source}.path", path, key)
    native.set(f"{source}.label", str(index) if entry.label is None else entry.label, f"{at}.label")
    repeat = entry.weight * theirs.dataset_global_weight
    if repeat != 1:
        native.set(f"{source}.repeat", repeat, f"{at}.weight", "dataset_global_weight")
    if entry.validation_split:
        native.set(f"{source}.start", entry.validation_split, f"{at}.validation_split")
    _marks(theirs, native, source)


def _marks(theirs: File, native: NativeBuilder, source: str) -> None:
    """Set what ends a document, and which labels have no loss."""
    if theirs.dataset_collator.ignore_index != -100:
        native.set(f"{source}.ignore_index", theirs.dataset_collator.ignore_index, "dataset_collator.ignore_index")
    if theirs.model.cross_sample_token_id is not None:
        native.set(f"{source}.document", "end_id", "model.cross_sample_token_id")


def _validation_file(native: NativeBuilder, entry: Dataset, index: int) -> tuple[str, str]:
    """File of dataset ``index`` to validate on and its key; both empty where there is none."""
    key, folder = f"dataset[{index}].validation_file", entry.cache_dir
    if entry.validation_file is not None:
        if folder is not None:
            native.refuse(key, "cannot be given together with cache_dir, which says where it is; keep one")
        return str(local_path(entry.validation_file)), key
    found = local_path(folder) / "validation.npy" if folder is not None else None
    return (str(found), f"dataset[{index}].cache_dir") if found is not None and found.is_file() else ("", "")


def _validation(theirs: File, native: NativeBuilder) -> None:
    """Validation sources: of each dataset its file, or the first part of its training file."""
    number = 0
    for index, entry in enumerate(theirs.dataset):
        source, at, split = f"data.validation_sources[{number}]", f"dataset[{index}]", entry.validation_split
        path, key = _train_path(native, entry, index)[0], f"{at}.validation_split"
        if not split:
            path, key = _validation_file(native, entry, index)
        elif isinstance(split, int) and split < entry.seq_len:
            message = f"{split} tokens hold no sample of seq_len {entry.seq_len}; give more, or a fraction as 0.1"
            native.refuse(key, message)
        if split and entry.validation_file is not None:
            native.say(f"{at}.validation_file: is not read, for validation_split stands instead of it")
        if not path:
            continue
        native.set(f"{source}.kind", "npy", key)
        native.set(f"{source}.path", path, key)
        if theirs.eval_dataset_concat is not None:
            native.set(f"{source}.label", "0", "eval_dataset_concat")
        else:
            native.set(f"{source}.label", str(index) if entry.label is None else entry.label, f"{at}.label")
        if split:
            native.set(f"{source}.stop", split, key)
        _marks(theirs, native, source)
        number += 1
    if not number:
        native.set("data.validation", 0)
    native.set("data.deduplicate_validation", False)


def _samples(theirs: File, native: NativeBuilder) -> None:
    """Length, packing, order."""
    first = theirs.dataset[0]
    for name in ("seq_len", "shift_labels"):
        for index, entry in enumerate(theirs.dataset):
            value, usual = getattr(entry, name), getattr(first, name)
            if value != usual:
                message = f"is {value!r}, and that of dataset[0] is {usual!r}; make them equal"
                native.refuse(f"dataset[{index}].{name}", message)
    native.set("data.sequence_length", first.seq_len, "dataset[0].seq_len")
    if not first.shift_labels and not theirs.model.architecture.loss.shift_labels:
        native.refuse(
            "model.architecture.loss.shift_labels",
            "false has each token predict itself, unless dataset[0].shift_labels is true; set one of the two",
        )
    native.set("data.packing.kind", "stream", "dataset_provider")
    native.set("data.packing.predict_next", first.shift_labels, "dataset[0].shift_labels")
    sequential = theirs.dataset_concat == "sequential"
    native.set("data.mixing", "sequential" if sequential else "random", "dataset_concat")
    if theirs.dataset_provider == "stream_lm" and (sequential or len(theirs.dataset) == 1):
        native.set("data.shuffle", False, "dataset_provider")


def _tokenizer(theirs: File, native: NativeBuilder) -> None:
    """The tokenizer that is named, one that lies beside the data, or ids alone."""
    cross = theirs.model.cross_sample_token_id
    files = {f"dataset[{index}].tokenizer_file": entry.tokenizer_file for index, entry in enumerate(theirs.dataset)}
    named = [(value, key) for key, value in files.items() if value is not None]
    for value, key in named[1:]:
        if value != named[0][0]:
            native.refuse(key, f"is not the {named[0][0]!r} of {named[0][1]}; a run has one tokenizer")
    found: list[tuple[Path, str]] = [(local_path(value), key) for value, key in named]
    for index, entry in enumerate(theirs.dataset):
        beside = local_path(entry.cache_dir) / "tokenizer.pkl" if entry.cache_dir is not None else None
        if beside is not None and beside.is_file():
            found.append((beside, f"dataset[{index}].cache_dir"))
    if found and cross is None:
        native.set("tokenizer", {"kind": "huggingface", "path": str(found[0][0])}, found[0][1])
        return
    if found:
        native.say(
            f"{found[0][1]}: the tokenizer is not used, for model.cross_sample_token_id says what ends documents"
        )
    if native.has(PRETRAINED) and not native.has("model.vocab_size"):
        return  # the model's own tokenizer
    native.set("tokenizer", {"kind": "ids", "vocab_size": theirs.model.vocab_size}, "model.vocab_size")
    if cross is not None:
        native.set("tokenizer.end_id", cross, "model.cross_sample_token_id")


def _loss(theirs: File, native: NativeBuilder) -> None:
    ids, index = theirs.dataset_collator.ignore_token_ids or (), theirs.dataset_collator.ignore_index
    never = [*ids, *([index] if index >= 0 and index not in ids else [])]
    if never:
        said = (["dataset_collator.ignore_token_ids"] if ids else []) + (
            ["dataset_collator.ignore_index"] if index >= 0 else []
        )
        native.set("loss.ignore_token_ids", never, *said)
    first, last = theirs.dataset_collator.ignore_token_range or (None, None)
    if first is not None or last is not None:
        span = [first or 0, theirs.model.vocab_size - 1 if last is None else last]
        native.set("loss.ignore_token_range", span, "dataset_collator.ignore_token_range")


def _model(theirs: File, native: NativeBuilder) -> None:
    """The model, whichever it is."""
    model = theirs.model
    for key, task in (
        ("model.model_task", model.model_task),
        (f"{ARCHITECTURE}.head.head_cls", model.architecture.head.head_cls),
    ):
        if task == "seq_cls":
            native.refuse(key, "seq_cls labels whole texts, and what is trained here predicts tokens; use causal_lm")
    if (model.pretrained_model_name_or_path or "").startswith("<"):
        native.refuse(PRETRAINED, "stands for a name; give the folder of a model, or its name on the hub")
    if model.use_torch_compile:
        native.set("train.compile", True, "model.use_torch_compile")
    if model.model_type == MIXFORMER and (native.has("model.model_type") or not native.has(PRETRAINED)):
        _mixformer(theirs, native)
    else:
        _huggingface(theirs, native)


def _mixformer(theirs: File, native: NativeBuilder) -> None:
    model, parts = theirs.model, theirs.model.architecture
    native.set("model.kind", "transformer", "model.model_type")
    if model.trust_remote_code:
        native.say(f"model.trust_remote_code: not used, for {MIXFORMER} is a transformer of Quintet's own")
    native.set("model.feedforward.bias", parts.mlp.mlp_cls != "gated", f"{ARCHITECTURE}.mlp.mlp_cls")
    native.set("model.feedforward.width", model.n_inner or 4 * model.n_embd, "model.n_inner", "model.n_embd")
    own = parts.mixer.out_bias
    native.set(
        "model.attention.output_bias",
        parts.mixer.bias if own is None else own,
        f"{MIXER}.bias" if own is None else f"{MIXER}.out_bias",
    )
    # First weights: those of a trained model, or normal without a scale by depth.
    if model.pretrained_model_name_or_path is not None:
        native.set("model.init", {"kind": "pretrained", "path": model.pretrained_model_name_or_path}, PRETRAINED)
    else:
        native.set("model.init.kind", "normal", "model.model_type")
        native.set("model.init.std", model.initializer_range, "model.initializer_range")
        native.set("model.init.scale_residual", False, "model.model_type")
    _attention(theirs, native)
    _positions(theirs, native)
    if model.gradient_checkpointing:
        native.set("train.activation_checkpointing", 1, "model.gradient_checkpointing")


def _attention(theirs: File, native: NativeBuilder) -> None:
    cross, mixer = theirs.model.cross_sample_token_id is not None, theirs.model.architecture.mixer
    kind, masks = ("bidirectional", ("full", "document"))
    if mixer.causal:
        kind, masks = ("causal", ("causal", "causal_document"))
    native.set("model.attention.kind", kind, f"{MIXER}.causal")
    native.set("model.attention.mask", masks[cross], *(["model.cross_sample_token_id"] if cross else []))
    if mixer.qk_norm:
        native.set("model.attention.qk_norm", "head", f"{MIXER}.qk_norm")
    if mixer.window_size is not None:
        native.set("model.attention.window", mixer.window_size + 1, f"{MIXER}.window_size")


def _positions(theirs: File, native: NativeBuilder) -> None:
    """Rotary positions of the first features of each head, learned ones, or both."""
    model, mixer, key = theirs.model, theirs.model.architecture.mixer, "model.rotary_dim"
    turned, learned = model.rotary_dim, model.embd_layer == "positional"
    if turned is not None and turned < 0:
        native.set("model.position.kind", "learned" if learned else "none", key)
        return
    size = mixer.head_dim or model.n_embd // model.n_head
    if turned and (turned > size or turned % 2):
        native.refuse(key, f"{turned} is no even number of features up to {size}, which a head has; lower it")
        return
    native.set("model.position.kind", "rope", key)
    native.set("model.position.theta", mixer.rotary_base, f"{MIXER}.rotary_base")
    if turned and turned != size:
        native.set("model.position.fraction", turned / size, key)
    if learned:
        native.set("model.position.learned", True, "model.embd_layer")
    key, factor_key = f"{MIXER}.rope_scaling", f"{MIXER}.rotary_scale_base"
    scaling = dict(mixer.rope_scaling or {})
    kind = scaling.pop("rope_type", scaling.pop("type", None))
    factor = scaling.pop("factor", mixer.rotary_scale_base or 1.0)
    if kind in ("yarn", "linear"):
        original = scaling.pop("original_max_position_embeddings", model.n_positions)
        context = {"original_context": original} if kind == "yarn" else {}
        native.set("model.position.scaling", {"kind": kind, "factor": factor, **context, **scaling}, key)
    elif mixer.rope_scaling or mixer.rotary_scale_base is not None:
        message = "needs rope_scaling.rope_type, which is yarn or linear"
        native.refuse(key if mixer.rope_scaling is not None else factor_key, message)


def _huggingface(theirs: File, native: NativeBuilder) -> None:
    """A model of the transformers library, with what the file says replaced in its configuration."""
    model, name = theirs.model, PRETRAINED if native.has(PRETRAINED) else "model.model_type"
    path = model.pretrained_model_name_or_path or model.model_type
    native.clear("model")
    native.set("model.kind", "huggingface", name)
    native.set("model.name_or_path", path, name)
    native.set("model.pretrained", name == PRETRAINED, name)
    if name != PRETRAINED and not local_path(path).is_dir():
        native.set("model.config.model_type", path, name)
    if name != PRETRAINED and not native.has("model.vocab_size"):
        native.refuse("model.model_type", f"{path} needs model.vocab_size: how many ids the data has")
    for info, steps, value in native.given.items():
        key = show(steps)
        if steps[0] != "model" or key.removeprefix("model.") in _OURS:
            continue
        spelled = (native.given.origin(key).key or "").split(", ")[0]
        if not spelled.startswith(ARCHITECTURE):
            raw = lookup(native.given.document.values, path_of(spelled))
            native.set(f"model.config.{spelled.removeprefix('model.')}", raw, key)
        elif not info.role.no_effect and value not in (info.default, "plain", "layer", "causal_lm", "mean"):
            native.refuse(key, _of_mixformer(native, name, path))
    if model.trust_remote_code:
        native.set("model.trust_remote_code", True, "model.trust_remote_code")
    if model.gradient_checkpointing:
        native.set("model.gradient_checkpointing", True, "model.gradient_checkpointing")
    if model.cross_sample_token_id is not None:
        native.set("model.documents", True, "model.cross_sample_token_id")
    if model.embd_layer != "default":
        native.refuse("model.embd_layer", f"belongs to model_type: {MIXFORMER}; leave it out")


def _of_mixformer(native: NativeBuilder, name: str, path: str) -> str:
    """Why a key of the own architecture cannot be followed."""
    if name == PRETRAINED and not native.has("model.model_type"):
        return f"needs model_type: {MIXFORMER}, which is missing; add it if {path} is such a model"
    return f"belongs to model_type: {MIXFORMER}, and {path} is none; leave it out"


DIALECT = Dialect(
    "phyagi",
    "PhyAGI",
    schema=File,
    shape=shape,
    rules=_rules,
    back=back,
    writes=writes,
    stand_in={"output_dir": "missing", "dataset[0].cache_dir": "missing.npy"},
)
