"""TMRC as a dialect: the rules that need several keys, and what it always does."""

from pathlib import Path

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.tmrc.back import back
from quintet.config.dialects.tmrc.schema import File
from quintet.config.names import is_hub_name, local_path


def _rules(theirs: File, native: NativeBuilder) -> None:
    _set_model(theirs, native)
    _set_attention(theirs, native)
    _set_data(theirs, native)
    native.set("optimizer.decay", "all")
    native.set("schedule", {"kind": "constant"})
    _set_training(theirs, native)


def _set_model(theirs: File, native: NativeBuilder) -> None:
    for part, kind in {"feedforward": "plain", "norm": "layer", "position": "learned", "init": "none"}.items():
        native.set(f"model.{part}.kind", kind, "model.name")
    native.set("model.kind", "transformer", "model.name")
    native.set("model.tie_embeddings", False, "model.name")
    native.set("model.context_length", theirs.model.context_length, "model.context_length")


def _set_attention(theirs: File, native: NativeBuilder) -> None:
    model = theirs.model
    native.set("model.attention.kind", "causal", "model.mask")
    if model.flash and model.flex:
        native.refuse("model.flex", "cannot be used with flash: true; set one of the two to false")
    if model.mask == "causal_document" and not model.flex:
        native.refuse("model.mask", "causal_document needs flex: true, because flash attention knows no documents")
    backend = "flash" if model.flash else "auto" if model.flex else "sdpa"
    native.set("model.attention.backend", backend, "model.flash" if model.flash else "model.flex")
    native.set("model.embedding_dropout", model.dropout_p, "model.dropout_p")
    native.set("model.residual_dropout", model.dropout_p, "model.dropout_p")
    native.set("model.attention.dropout", 0.0 if model.flex else model.dropout_p, "model.dropout_p", "model.flex")
    native.set("train.compile", "auto" if model.compile_flex else False, "model.compile_flex")


def _set_data(theirs: File, native: NativeBuilder) -> None:
    path = Path(theirs.datasets.path)
    native.set("data.sources[0].kind", "tatm", "datasets.path")
    native.set("data.sources[0].path", str(path), "datasets.path")
    _set_tokenizer(theirs, native, path.parent if path.suffix in (".json", ".yaml", ".yml") else path)
    name, used = theirs.tokenizer.name, theirs.datasets.tokenizer_used
    if name is not None:
        if used not in (None, name):
            native.refuse(
                "tokenizer.name", f"{name!r} is not the {used!r} of datasets.tokenizer_used; keep one of them"
            )
        native.set("data.sources[0].tokenizer", name, "tokenizer.name")


def _set_tokenizer(theirs: File, native: NativeBuilder, folder: Path) -> None:
    """Set the tokenizer in the dataset's ``folder``, else the one that the file names.

    The samples are ids, so training needs the tokenizer only for the id that ends a document, which is 1 for T5's.
    """
    name = theirs.tokenizer.name
    if name is None or (local_path(folder) / "tokenizer.json").is_file():
        native.set("tokenizer", {"kind": "huggingface", "path": str(folder)}, "datasets.path")
        return
    is_t5 = "t5" in name.lower()
    if not is_t5 and local_path(folder).is_dir():
        native.refuse(
            "tokenizer.name", f"the id that ends a document is not known: put {name}'s tokenizer.json into {folder}"
        )
    if not is_t5 or _is_here(name):
        native.set("tokenizer", {"kind": "huggingface", "path": name}, "tokenizer.name")
        return
    ids = {"kind": "ids", "vocab_size": theirs.tokenizer.vocab_size, "end_id": 1}
    native.set("tokenizer", ids, "tokenizer.vocab_size", "tokenizer.name")
    native.say(
        f"tokenizer.name: {name} is not on this machine, and training from ids needs none; to generate text, put its "
        f"tokenizer.json into {folder}"
    )


def _is_here(name: str) -> bool:
    """True if ``name`` is a folder, or a tokenizer in the hub's cache."""
    if local_path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    files = ("tokenizer.json", "spiece.model")
    return is_hub_name(name) and any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _set_training(theirs: File, native: NativeBuilder) -> None:
    training, name = theirs.training, theirs.wandb_log.name
    native.set("train.clip_norm", None)
    # The last sample has a target for each of its inputs, so it ends one token later.
    held_out = training.batch_size * theirs.model.context_length + 1
    native.set("data.validation", held_out, "training.batch_size", "model.context_length")
    native.set("evaluate.samples", training.batch_size, "training.batch_size")
    native.set("sample.prompts", [])
    native.set("checkpoint.every", None, "training.save_every")
    seconds, key = (training.save_every, "save_every") if training.save_model else (None, "save_model")
    native.set("checkpoint.every_seconds", seconds, f"training.{key}")
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    if name is not None:
        native.set("name", name, "wandb_log.name")
        native.set("track", [{"kind": "wandb", "arguments": {"name": name}}], "wandb_log.name")


_STAND_IN = {"datasets.path": "missing"}
DIALECT = Dialect("tmrc", "TMRC", schema=File, rules=_rules, back=back, hydra=True, stand_in=_STAND_IN)
