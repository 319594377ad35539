"""TMRC: transformers on tokenized datasets of tatm (docs/training_config.rst of KempnerInstitute/tmrc)."""

from __future__ import annotations

from pathlib import Path

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.table import REQUIRED, Dialect, Key, Put
from quintet.config.dialects.values import choice, flag, listed, number, text, whole
from quintet.config.model import TransformerConfig
from quintet.config.names import is_hub_name, local_path
from quintet.config.schema import RunConfig

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

KEYS = (
    Key("datasets.name", text(), "name of the dataset, for reports", to="data.sources[0].label"),
    Key(
        "datasets.path",
        text(),
        "folder of the tokenized dataset, or its metadata file",
        affects=("data.sources", "tokenizer"),
        default=REQUIRED,
    ),
    Key(
        "datasets.tokenizer_used",
        text(),
        "tokenizer that made the dataset; its metadata must say the same",
        to="data.sources[0].tokenizer",
    ),
    Key("model.name", choice("gpt"), "architecture", default="gpt", affects=("model.kind",)),
    Key("model.n_head", whole(1), "attention heads", to="model.attention.heads", default=4),
    Key("model.d_model", whole(1), "hidden size", to="model.width", default=512),
    Key("model.n_layer", whole(1), "transformer layers", to="model.layers", default=8),
    Key(
        "model.dropout_p",
        number(0, below=1),
        "dropout on embeddings, on attention weights (not under flex, which cannot), and on what attention and "
        "feed-forward add",
        default=0.0,
        affects=("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout"),
    ),
    Key(
        "model.context_length",
        whole(2),
        "tokens of a sample, and most positions",
        default=512,
        affects=("data.sequence_length", "model.context_length"),
    ),
    Key(
        "model.autocast_precision",
        choice(by=PRECISIONS),
        "numbers of the matrix products",
        to="train.precision",
        default="bf16",
        aliases=("model.weight_precision",),
    ),
    Key("model.flash", flag(), "FlashAttention", default=False, affects=("model.attention.backend",)),
    Key(
        "model.flex",
        flag(),
        "FlexAttention where it exists and trains, elsewhere the fastest kernel with its numbers; not with flash",
        default=True,
        affects=("model.attention.backend",),
    ),
    Key(
        "model.compile_flex",
        flag(),
        "compile the blocks; false leaves them as they are",
        default=True,
        aliases=("model.compile",),
        documented=False,
        affects=("train.compile",),
    ),
    Key(
        "model.mlp_scale_factor",
        number(above=0),
        "feed-forward width over d_model",
        to="model.feedforward.factor",
        default=4.0,
    ),
    Key("model.mlp_bias", flag(), "biases in the feed-forward layers", to="model.feedforward.bias", default=True),
    Key("model.attn_bias", flag(), "biases of queries, keys and values", to="model.attention.bias", default=False),
    Key("model.proj_bias", flag(), "bias of attention's output", to="model.attention.output_bias", default=True),
    Key("model.ln_bias", flag(), "biases of the layer norms", to="model.norm.bias", default=True),
    Key("model.cls_head_bias", flag(), "bias of the head", to="model.head.bias", default=True),
    Key(
        "model.activation",
        choice("relu", "gelu"),
        "function of the feed-forward network",
        to="model.feedforward.activation",
        default="relu",
    ),
    Key(
        "model.mask",
        choice("causal", "causal_document"),
        "causal, or causal within each document, which needs flex",
        to="model.attention.mask",
        default="causal_document",
    ),
    Key("optimizer.name", choice("AdamW"), "optimizer", default="AdamW", affects=("optimizer.kind",)),
    Key("optimizer.lr", number(above=0), "learning rate, the same at every step", to="optimizer.lr", default=1e-4),
    Key("optimizer.weight_decay", number(0), "decay of all weights", to="optimizer.weight_decay", default=0.01),
    Key(
        "optimizer.betas",
        listed(number(0, below=1), 2),
        "decay of the averages of the gradient and of its square",
        to="optimizer.betas",
        default=[0.9, 0.999],
    ),
    Key("optimizer.eps", number(above=0), "added to the root of the second average", to="optimizer.eps", default=1e-8),
    Key(
        "optimizer.precision",
        choice(by=PRECISIONS),
        "precision of the optimizer's averages",
        to="optimizer.state_precision",
        default="fp32",
    ),
    Key(
        "tokenizer.name",
        text(),
        "tokenizer of the model; the dataset's metadata must name it",
        affects=("data.sources[0].tokenizer",),
    ),
    Key("tokenizer.vocab_size", whole(1), "rows of embedding and head", to="model.vocab_size", default=32128),
    Key("training.epochs", whole(1), "passes over the data", to="train.epochs", default=1),
    Key(
        "training.train_steps",
        whole(1),
        "most steps; training ends with these or with the epochs, whichever comes first",
        to="train.steps",
        default=100_000,
    ),
    Key(
        "training.batch_size",
        whole(1),
        "samples a step, and samples that are validated on",
        to="train.batch_size",
        default=256,
        affects=("data.validation", "evaluate.samples"),
    ),
    Key(
        "training.log_interval",
        whole(1),
        "steps between logs of training metrics: progress lines and trackers",
        to="train.log_every",
        default=20,
    ),
    Key(
        "training.val_interval",
        whole(1),
        "steps between validations",
        to="evaluate.every",
        default=100,
        documented=False,
    ),
    Key("training.shuffle", flag(), "a new order of the samples in each epoch", to="data.shuffle", default=True),
    Key(
        "training.save_model",
        flag(),
        "keep checkpoints; false keeps none",
        default=True,
        affects=("checkpoint.at_end", "checkpoint.every_seconds"),
    ),
    Key(
        "training.save_every",
        number(above=0),
        "seconds between checkpoints",
        default=3600.0,
        affects=("checkpoint.every_seconds",),
    ),
    Key("training.artifacts_path", text(), "folder in which the run's folder is made", to="runs_dir"),
    Key(
        "training.use_oracle",
        flag(),
        "train on one fixed batch and compare the loss with the entropy of its targets",
        to="data.fixed_batch",
        default=False,
    ),
    Key("wandb_log.name", text(), "name of the run, here and in Weights & Biases", affects=("name", "track")),
    Key(
        "HydraConf.version_base",
        text(),
        "the version of Hydra whose rules compose the file",
        default="1.1",
        no_effect="Hydra has composed the file by these rules",
    ),
)


def _rules(given: DialectFile, native: NativeBuilder) -> None:
    _model(given, native)
    _attention(given, native)
    path = Path(given["datasets.path"])
    native.set("data.sources[0].kind", "tatm", "datasets.path")
    native.set("data.sources[0].path", str(path), "datasets.path")
    _tokenizer(given, native, path.parent if path.suffix in (".json", ".yaml", ".yml") else path)
    name, used = given["tokenizer.name"], given["datasets.tokenizer_used"]
    if name is not None:
        if used is not None and used != name:
            given.refuse("tokenizer.name", f"{name!r} is not the {used!r} of datasets.tokenizer_used; they must be one")
        native.set("data.sources[0].tokenizer", name, "tokenizer.name")
    native.set("optimizer.kind", "adamw", "optimizer.name")
    native.set("optimizer.decay", "all")
    native.set("schedule", {"kind": "constant"})
    _training(given, native)


def _tokenizer(given: DialectFile, native: NativeBuilder, folder: Path) -> None:
    """The tokenizer of the dataset's folder, else the one that is named. The samples are ids, so a T5's, whose
    documents end with id 1, need neither."""
    name = given["tokenizer.name"]
    if name is None or (local_path(folder) / "tokenizer.json").is_file():
        native.set("tokenizer", {"kind": "huggingface", "path": str(folder)}, "datasets.path")
        return
    if "t5" not in name.lower() and local_path(folder).is_dir():
        given.refuse(
            "tokenizer.name", f"the id that ends a document is not known: put {name}'s tokenizer.json into {folder}"
        )
    if "t5" not in name.lower() or _is_here(name):
        native.set("tokenizer", {"kind": "huggingface", "path": name}, "tokenizer.name")
        return
    ids = {"kind": "ids", "vocab_size": given["tokenizer.vocab_size"], "end_id": 1}
    native.set("tokenizer", ids, "tokenizer.vocab_size", "tokenizer.name")
    native.say(
        f"tokenizer.name: {name} is not on this machine, and training from ids needs none; to write texts, put its "
        f"tokenizer.json into {folder}"
    )


def _is_here(name: str) -> bool:
    """Whether ``name`` is a folder, or a tokenizer in the hub's cache."""
    if local_path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    files = ("tokenizer.json", "spiece.model")
    return is_hub_name(name) and any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _model(given: DialectFile, native: NativeBuilder) -> None:
    native.set("model.kind", "transformer", "model.name")
    native.set("model.feedforward.kind", "plain", "model.name")
    native.set("model.norm.kind", "layer", "model.name")
    native.set("model.position.kind", "learned", "model.name")
    native.set("model.init.kind", "none", "model.name")
    native.set("model.tie_embeddings", False, "model.name")
    for key in ("data.sequence_length", "model.context_length"):
        native.set(key, given["model.context_length"], "model.context_length")


def _attention(given: DialectFile, native: NativeBuilder) -> None:
    flash, flex, mask = (given[f"model.{name}"] for name in ("flash", "flex", "mask"))
    native.set("model.attention.kind", "causal", "model.mask")
    if flash and flex:
        given.refuse("model.flex", "cannot be used with flash: true; set one of the two to false")
    if mask == "causal_document" and not flex:
        given.refuse("model.mask", "causal_document needs flex: true, for flash attention knows no documents")
    backend = "flash" if flash else "auto" if flex else "sdpa"
    native.set("model.attention.backend", backend, "model.flash" if flash else "model.flex")
    dropout = given["model.dropout_p"]
    native.set("model.embedding_dropout", dropout, "model.dropout_p")
    native.set("model.residual_dropout", dropout, "model.dropout_p")
    native.set("model.attention.dropout", 0.0 if flex else dropout, "model.dropout_p", "model.flex")
    native.set("train.compile", "auto" if given["model.compile_flex"] else False, "model.compile_flex")


def _training(given: DialectFile, native: NativeBuilder) -> None:
    native.set("train.clip_norm", None)
    # A window has a target for each of its inputs, so the last of them ends with one token more.
    held_out = given["training.batch_size"] * given["model.context_length"] + 1
    native.set("data.validation", held_out, "training.batch_size", "model.context_length")
    native.set("evaluate.samples", given["training.batch_size"], "training.batch_size")
    native.set("sample.prompts", [])
    saving = given["training.save_model"]
    native.set("checkpoint.every", None, "training.save_every")
    seconds, key = (given["training.save_every"], "save_every") if saving else (None, "save_model")
    native.set("checkpoint.every_seconds", seconds, f"training.{key}")
    native.set("checkpoint.at_end", saving, "training.save_model")
    native.set("checkpoint.keep", None)
    native.set("checkpoint.keep_best", False)
    if given.has("wandb_log.name"):
        native.set("name", given["wandb_log.name"], "wandb_log.name")
        native.set("track", [{"kind": "wandb", "arguments": {"name": given["wandb_log.name"]}}], "wandb_log.name")


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
    name="tmrc",
    title="TMRC",
    keys=KEYS,
    rules=_rules,
    back=_back,
    hydra=True,
)
