"""Rules for keys of TMRC that depend on each other, and what it always does."""

from __future__ import annotations

from pathlib import Path

from quintet.config.dialects.dialect import Dialect, Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.tmrc.schema import File
from quintet.config.model import TransformerConfig
from quintet.config.names import is_hub_name, local_path
from quintet.config.schema import RunConfig


def _rules(theirs: File, native: NativeBuilder) -> None:
    _model(theirs, native)
    _attention(theirs, native)
    path = Path(theirs.datasets.path)
    native.set("data.sources[0].kind", "tatm", "datasets.path")
    native.set("data.sources[0].path", str(path), "datasets.path")
    _tokenizer(theirs, native, path.parent if path.suffix in (".json", ".yaml", ".yml") else path)
    name, used = theirs.tokenizer.name, theirs.datasets.tokenizer_used
    if name is not None:
        if used is not None and used != name:
            native.refuse(
                "tokenizer.name", f"{name!r} is not the {used!r} of datasets.tokenizer_used; they must be one"
            )
        native.set("data.sources[0].tokenizer", name, "tokenizer.name")
    native.set("optimizer.decay", "all")
    native.set("schedule", {"kind": "constant"})
    _training(theirs, native)


def _tokenizer(theirs: File, native: NativeBuilder, folder: Path) -> None:
    """The tokenizer of the dataset's folder, else the one that is named. The samples are ids, so a T5's, whose
    documents end with id 1, need neither."""
    name = theirs.tokenizer.name
    if name is None or (local_path(folder) / "tokenizer.json").is_file():
        native.set("tokenizer", {"kind": "huggingface", "path": str(folder)}, "datasets.path")
        return
    if "t5" not in name.lower() and local_path(folder).is_dir():
        native.refuse(
            "tokenizer.name", f"the id that ends a document is not known: put {name}'s tokenizer.json into {folder}"
        )
    if "t5" not in name.lower() or _is_here(name):
        native.set("tokenizer", {"kind": "huggingface", "path": name}, "tokenizer.name")
        return
    ids = {"kind": "ids", "vocab_size": theirs.tokenizer.vocab_size, "end_id": 1}
    native.set("tokenizer", ids, "tokenizer.vocab_size", "tokenizer.name")
    native.say(
        f"tokenizer.name: {name} is not on this machine, and training from ids needs none; to write texts, put its "
        f"tokenizer.json into {folder}"
    )


def _is_here(name: str) -> bool:
    """True if ``name`` is a folder, or a tokenizer in the hub's cache."""
    if local_path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    files = ("tokenizer.json", "spiece.model")
    return is_hub_name(name) and any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _model(theirs: File, native: NativeBuilder) -> None:
    native.set("model.kind", "transformer", "model.name")
    native.set("model.feedforward.kind", "plain", "model.name")
    native.set("model.norm.kind", "layer", "model.name")
    native.set("model.position.kind", "learned", "model.name")
    native.set("model.init.kind", "none", "model.name")
    native.set("model.tie_embeddings", False, "model.name")
    for key in ("data.sequence_length", "model.context_length"):
        native.set(key, theirs.model.context_length, "model.context_length")


def _attention(theirs: File, native: NativeBuilder) -> None:
    model = theirs.model
    native.set("model.attention.kind", "causal", "model.mask")
    if model.flash and model.flex:
        native.refuse("model.flex", "cannot be used with flash: true; set one of the two to false")
    if model.mask == "causal_document" and not model.flex:
        native.refuse("model.mask", "causal_document needs flex: true, for flash attention knows no documents")
    backend = "flash" if model.flash else "auto" if model.flex else "sdpa"
    native.set("model.attention.backend", backend, "model.flash" if model.flash else "model.flex")
    native.set("model.embedding_dropout", model.dropout_p, "model.dropout_p")
    native.set("model.residual_dropout", model.dropout_p, "model.dropout_p")
    native.set("model.attention.dropout", 0.0 if model.flex else model.dropout_p, "model.dropout_p", "model.flex")
    native.set("train.compile", "auto" if model.compile_flex else False, "model.compile_flex")


def _training(theirs: File, native: NativeBuilder) -> None:
    training, name = theirs.training, theirs.wandb_log.name
    native.set("train.clip_norm", None)
    # A window has a target for each of its inputs, so the last of them ends with one token more.
    held_out = training.batch_size * theirs.model.context_length + 1
    native.set("data.validation", held_out, "training.batch_size", "model.context_length")
    native.set("evaluate.samples", training.batch_size, "training.batch_size")
    native.set("sample.prompts", [])
    native.set("checkpoint.every", None, "training.save_every")
    seconds, key = (training.save_every, "save_every") if training.save_model else (None, "save_model")
    native.set("checkpoint.every_seconds", seconds, f"training.{key}")
    native.set("checkpoint.at_end", training.save_model, "training.save_model")
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    if name is not None:
        native.set("name", name, "wandb_log.name")
        native.set("track", [{"kind": "wandb", "arguments": {"name": name}}], "wandb_log.name")


def _back(config: RunConfig, put: Put) -> None:
    source = config.data.sources[0]
    put("datasets.path", getattr(source, "path", "???"))
    put("tokenizer.name", getattr(source, "tokenizer", None) or getattr(config.tokenizer, "path", "???"))
    put("model.context_length", config.data.sequence_length)
    if isinstance(config.model, TransformerConfig):
        put("model.dropout_p", config.model.residual_dropout)
        put("model.flash", config.model.attention.backend == "flash")
        put("model.flex", config.model.attention.backend in ("auto", "flex"))
    put("model.compile_flex", config.train.compile is not False)
    put("training.save_model", config.checkpoint.at_end)
    if config.checkpoint.every_seconds is not None:
        put("training.save_every", config.checkpoint.every_seconds)
    if any(track.kind == "wandb" for track in config.track):
        put("wandb_log.name", config.name)


DIALECT = Dialect(
    "tmrc", "TMRC", schema=File, rules=_rules, back=_back, hydra=True, stand_in={"datasets.path": "missing"}
)
