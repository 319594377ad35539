"""The keys of TMRC."""

from typing import Annotated, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.types import (
    AboveZero,
    Arguments,
    Fraction,
    NotNegative,
    Positive,
    Precision,
    Share,
    Text,
    one_of,
)
from quintet.config.section import key


class Datasets(DialectSection):
    """A tokenized dataset of tatm."""

    name: Text | None = key(None, "name of the dataset, for reports", to="data.sources[0].label")
    path: Text = key(..., "folder or metadata file of the tokenized dataset", affects=("data.sources", "tokenizer"))
    tokenizer_used: Text | None = key(
        None, "tokenizer that made the dataset; its metadata must say the same", to="data.sources[0].tokenizer"
    )


class Model(DialectSection):
    """The transformer."""

    name: Annotated[str, one_of(by={"gpt": "gpt", "Cfg": "gpt"})] = key(
        "gpt", "architecture", affects="model.kind", aliases="_target_"
    )
    n_head: Positive = key(4, "attention heads", to="model.attention.heads")
    d_model: Positive = key(512, "hidden size", to="model.width")
    n_layer: Positive = key(8, "transformer layers", to="model.layers")
    dropout_p: Fraction = key(
        0.0,
        "dropout on embeddings, on attention weights (not with flex, which cannot), and on the outputs of attention "
        "and feed-forward",
        affects=("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout"),
    )
    context_length: int = key(
        512, "tokens of a sample, and most positions", ge=2, to="data.sequence_length", affects="model.context_length"
    )
    autocast_precision: Precision = key(
        "bfloat16", "precision of the matrix products", to="train.precision", aliases="weight_precision"
    )
    flash: bool = key(False, "FlashAttention", affects="model.attention.backend")
    flex: bool = key(
        True,
        "FlexAttention where it can train, elsewhere the fastest kernel of equal results; not with flash",
        affects="model.attention.backend",
    )
    compile_flex: bool = key(True, "compile the blocks", affects="train.compile", aliases="compile", documented=False)
    mlp_scale_factor: AboveZero = key(4.0, "feed-forward width over d_model", to="model.feedforward.factor")
    mlp_bias: bool = key(True, "biases in the feed-forward layers", to="model.feedforward.bias")
    attn_bias: bool = key(False, "biases of queries, keys and values", to="model.attention.bias")
    proj_bias: bool = key(True, "bias of attention's output", to="model.attention.output_bias")
    ln_bias: bool = key(True, "biases of the layer norms", to="model.norm.bias")
    cls_head_bias: bool = key(True, "bias of the head", to="model.head.bias")
    activation: Literal["relu", "gelu"] = key("relu", "feed-forward activation", to="model.feedforward.activation")
    mask: Literal["causal", "causal_document"] = key(
        "causal_document", "causal, or causal within each document, which needs flex", to="model.attention.mask"
    )
    bias: bool | None = key(
        None,
        "biases of the first models",
        documented=False,
        unsupported="is now mlp_bias, attn_bias, proj_bias, ln_bias and cls_head_bias; set these",
    )


class Optimizer(DialectSection):
    """AdamW, with a constant learning rate."""

    name: Annotated[str, one_of(by={"AdamW": "adamw", "torch.optim.AdamW": "adamw"})] = key(
        "AdamW", "optimizer", to="optimizer.kind", aliases="_target_"
    )
    lr: NotNegative = key(1e-4, "learning rate, the same at every step", to="optimizer.lr")
    weight_decay: NotNegative = key(0.01, "decay of all weights", to="optimizer.weight_decay")
    betas: tuple[Share, Share] = key(
        (0.9, 0.999), "decay of the averages of the gradient and of its square", to="optimizer.betas"
    )
    eps: AboveZero = key(1e-8, "added to the root of the second average", to="optimizer.eps")
    precision: Precision = key("float32", "precision of the optimizer's averages", to="optimizer.state_precision")


class Tokenizer(DialectSection):
    """The tokenizer of model and dataset."""

    name: Text | None = key(None, "tokenizer; the dataset's metadata must name it", affects="data.sources[0].tokenizer")
    vocab_size: Positive = key(32128, "rows of embedding and head", to="model.vocab_size")


class Training(DialectSection):
    """Length, batches, validation and checkpoints of the run."""

    epochs: Positive = key(1, "passes over the data", to="train.epochs")
    train_steps: Positive = key(
        100_000, "most steps; training ends after these or after the epochs, whichever comes first", to="train.steps"
    )
    batch_size: Positive = key(
        256,
        "samples per step, and held-out samples of a validation",
        to="train.batch_size",
        affects=("data.validation", "evaluate.samples"),
    )
    log_interval: Positive = key(20, "steps between logs of training metrics", to="train.log_every")
    val_interval: Positive = key(100, "steps between validations", to="evaluate.every", documented=False)
    shuffle: bool = key(True, "a new order of the samples in each epoch", to="data.shuffle")
    save_model: bool = key(True, "write checkpoints", to="checkpoint.at_end", affects="checkpoint.every_seconds")
    save_every: AboveZero = key(3600.0, "seconds between checkpoints", affects="checkpoint.every_seconds")
    artifacts_path: Text | None = key(None, "folder in which the run's folder is made", to="runs_dir")
    use_oracle: bool = key(
        False, "train on one fixed batch and compare the loss with the entropy of its targets", to="data.fixed_batch"
    )


class WandbLog(DialectSection):
    """Weights & Biases, if the section names the run."""

    name: Text | None = key(None, "name of the run, here and in Weights & Biases", affects=("name", "track"))


class HydraConf(DialectSection):
    """How Hydra composes the file."""

    version_base: Text = key(
        "1.1", "version of Hydra whose rules compose the file", no_effect="Hydra has composed the file by these rules"
    )


class File(DialectSection):
    """A run file of TMRC."""

    datasets: Datasets
    test_data: Arguments | None = key(
        None,
        "data of TMRC's own tests",
        documented=False,
        unsupported="is read only by TMRC's own tests; datasets.path names the data of a run",
    )
    model: Model
    optimizer: Optimizer
    tokenizer: Tokenizer
    training: Training
    wandb_log: WandbLog
    HydraConf: HydraConf
