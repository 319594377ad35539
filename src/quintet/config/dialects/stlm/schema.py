"""The keys of SuperTinyLanguageModels, as its document has them; other nestings are those of older and newer files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import create_model

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.stlm import names
from quintet.config.dialects.stlm.evaluation import Evaluation
from quintet.config.dialects.stlm.names import EXPERIMENT, words
from quintet.config.dialects.types import Count, FalseIsZero, Fraction, Listed, NotNegative, Positive, Share, Text
from quintet.config.section import key

OF_BYTES = ("model.embedding.bytes", "model.head.bytes", "train.clip_norm", "optimizer.eps")

CORE = ("model.kind", "model.sharing", "model.tie_feedforward", "model.tie_attention_output")
INNER = ("model.sharing",)
Dropout = Annotated[Fraction, FalseIsZero]
Names = Annotated[tuple[Text, ...], Listed]
S = TypeVar("S", bound=DialectSection)


def _unlisted(default: Any, help: str, **more: Any) -> Any:
    """A key of STLM's files that its document leaves out."""
    return key(default, help, documented=False, **more)


def _refuses(names: str, help: str = "experiment", reason: str = EXPERIMENT) -> Callable[[type[S]], type[S]]:
    """Adds the keys ``names`` to a section, none of which can be followed."""

    def add(section: type[S]) -> type[S]:
        keys: Any = {name: (Any, _unlisted(None, help, unsupported=reason)) for name in names.split()}
        return create_model(section.__name__, __base__=section, __doc__=section.__doc__, **keys)

    return add


def _lm_head(name: str) -> tuple[str, str]:
    """A key of the head in older files."""
    return f"model.lm_head.{name}", f"model.lm_head.lm_head_{name}"


def _embedder(*names: str) -> tuple[str, ...]:
    """A key of the embedding in older files."""
    return tuple(f"model.embedder.{name}" for name in names)


@_refuses("num_experts top_k")
class FeedForwardNetwork(DialectSection):
    """The feed-forward network of a block."""

    nestings = ("model.core_model.ffn", "model.ffn.params")

    ffn_type: names.FeedForward = key(
        "generic", "generic: two layers; silu_ffn: a third one as a gate", to="model.feedforward.kind", aliases="name"
    )
    ffn_dim: Positive | None = key(None, "feed-forward dimension", to="model.feedforward.width")
    bias: bool = key(False, "biases of its layers, and of its layer_norm", to="model.feedforward.bias")
    ffn_dropout: Dropout = key(0.0, "dropout on its input", to="model.feedforward.input_dropout", aliases="dropout")
    activation: names.Activation = key(
        "gelu", "generic: function between the layers", to="model.feedforward.activation"
    )
    normalization: names.Norm = key("rms_norm", "norm in front of it", affects=("model.norm", "model.feedforward.norm"))


class AttentionLayer(DialectSection):
    """The attention of a block."""

    nestings = ("model.core_model.attn", "model.attn.params")

    attn_type: names.Attention = key(
        "causal", "which positions a position attends to", affects="model.attention.kind", aliases="name"
    )
    num_kv_heads: Positive | None = key(None, "key and value heads: the smaller", affects="model.attention.kv_heads")
    num_q_heads: Positive | None = key(
        None, "query heads: the larger; else num_kv_heads", affects="model.attention.heads", aliases="num_heads"
    )
    group_size: Positive | None = _unlisted(None, "query heads a key head", affects="model.attention.kv_heads")
    is_causal: bool | None = _unlisted(None, "causal or bidirectional", affects="model.attention.kind")
    head_dim: Positive | None = _unlisted(None, "size of a head; hidden_dim / heads", to="model.attention.head_dim")
    bias: bool = key(False, "biases of its projections, and of its layer_norm", to="model.attention.bias")
    attn_dropout: Dropout = key(0.0, "dropout on its input", to="model.attention.input_dropout", aliases="dropout")
    normalization: names.Norm = key("rms_norm", "norm in front of it", affects=("model.norm", "model.attention.norm"))


@_refuses(
    "context_window num_heads pooling_layers pooling_dims "
    "pooling_pct_per_layer pct_pool_per_layer standard_ffn_block standard_attn_block"
)
class Embedder(DialectSection):
    """The embedding in older files; its keys in today's names are those of `model`."""


@_refuses("latent_decoded_into num_layers standard_ffn_block standard_attn_block")
class LmHead(DialectSection):
    """The head in older files; its keys in today's names are those of `model`."""


@_refuses(
    "lm_head_num_classes latent_dim "
    "byte_hidden global_byte_projection chunk_len_loss_weight "
    "chunk_len_penalty max_chunk_length max_num_chunks target_chunk_len num_byte_decoder_layers "
    "num_delimiter_layers"
)
class Model(DialectSection):
    """The model and its tokenizer."""

    nestings = ("model.core_model",)

    core_model_type: names.Core = key(
        ..., "generic: a transformer; hf_core: a model of Hugging Face's; others: blocks share parts", affects=CORE
    )
    k_interior_layers: Count | None = _unlisted(None, "blocks at each end that share nothing, and one", affects=INNER)
    lora_rank: Positive | None = _unlisted(None, "rank of what a block adds to a shared matrix", affects=INNER)
    lora_alpha: float | None = _unlisted(None, "it times lora_alpha / lora_rank; else 1", gt=0, affects=INNER)
    num_layers: Positive | None = key(None, "blocks", to="model.layers", aliases="depth")
    hidden_dim: Positive | None = key(None, "size of the hidden layers", to="model.width")
    embedding_dim: Positive | None = _unlisted(None, "width of the embedding: hidden_dim", affects="model.width")
    context_window: int = key(
        ..., "length of a sample, and most positions", ge=2, to="data.sequence_length", affects="model.context_length"
    )
    vocab_size: int | None = key(
        None,
        "rows of embedding and head, at least as many as the tokenizer has ids; ids of the one that bpe trains",
        ge=257,
        affects=("model.vocab_size", "tokenizer.vocab_size"),
    )
    ffn_weight_tying: bool = key(False, "one feed-forward network for all blocks", to="model.tie_feedforward")
    c_proj_weight_tying: bool = key(
        False, "one output of attention for all blocks", to="model.tie_attention_output", aliases="cproj_weight_tying"
    )
    freeze_core: bool = key(True, "hf_core: train embedding and head alone", affects="model.freeze", aliases="freeze")
    model_string: Text | None = _unlisted(
        None, "hf_core: folder or hub name", affects=("model.name_or_path", "tokenizer.path"), aliases="hf_model_name"
    )
    flash_attention: bool | None = _unlisted(
        None, "FlashAttention; false leaves the choice", affects=("model.attention.backend", "model.attention_backend")
    )
    use_lora: bool | None = _unlisted(None, "hf_core: train adapters of rank 8", affects="model.lora")
    lora_targets: tuple[Text, ...] | None = _unlisted(None, "modules with an adapter", affects="model.lora.targets")
    embedding_model_type: Annotated[str, words("generic hf_embedder byte_level=bytes")] = key(
        "generic",
        "learned, or the checkpoint's; byte_level mixes the bytes of each token",
        affects=("model.kind", "model.embedding"),
        aliases=_embedder("embedding_model_type"),
    )
    byte_tokenizer_type: Literal["bpe"] = _unlisted(
        "bpe", "byte_level", aliases=_embedder("byte_tokenizer_type"), no_effect="a token is spelled with its own bytes"
    )
    byte_vocab_size: Positive = _unlisted(258, "byte_level: symbols", affects=("model.embedding", "model.head"))
    byte_context_window: int = _unlisted(
        12, "byte_level: bytes of a token", ge=4, affects=OF_BYTES, aliases=_embedder("byte_context_window")
    )
    byte_embedding_dim: Positive = _unlisted(
        128, "byte_level: features of a byte", affects=("model.embedding.width", "model.head.width")
    )
    embedding_weight_tying: bool = key(True, "one matrix for embedding and head", to="model.tie_embeddings")
    embedding_dropout: Dropout = key(
        0.0, "dropout on the embedding", to="model.embedding_dropout", aliases=_embedder("dropout", "embedding_dropout")
    )
    tokenizer_type: names.Tokenizer | None = key(
        None, "tokenizer", affects="tokenizer.kind", aliases=("tokenizer", *_embedder("tokenizer_type"))
    )
    tokenizer_dataset_name: Names | None = key(
        None,
        "bpe: dataset to train it on, one of those of trainer.dataset or a path; trainer.dataset when not given",
        affects="tokenizer.sources",
        aliases=("tokenizer_dataset_names", "tokenizer_dataset", *_embedder("dataset_name")),
    )
    tokenizer_simplify: bool = key(
        True, "bpe: plain letters, each digit a token", affects="tokenizer.simplify", aliases="tokenizer_simplify_data"
    )
    tokenizer_num_reserved_tokens: Count = _unlisted(
        0, "bpe: ids of vocab_size that no text has", affects="tokenizer.vocab_size"
    )
    lm_head_type: Annotated[str, words("generic hf_head byte_level=bytes lm_head=generic")] = key(
        "generic",
        "norm and matrix, or the checkpoint's; byte_level predicts the bytes of the next token",
        affects=("model.kind", "model.head", "train.clip_norm"),
        aliases=("model_head_type", *_lm_head("type")),
    )
    lm_head_normalization: names.Norm = key(
        "rms_norm",
        "norm before the head",
        affects=("model.norm", "model.head.norm"),
        aliases=("model_head_norm", *_lm_head("normalization")),
    )
    lm_head_bias: bool = key(
        False, "bias of the head, and of its layer_norm", to="model.head.bias", aliases=_lm_head("bias")
    )
    lm_head_dropout: Dropout = key(
        0.0, "dropout on what enters the head's matrix", to="model.head.dropout", aliases=_lm_head("dropout")
    )
    model_shell_type: Annotated[str, words("standard byte_shell byte_enc_shell")] = key(
        "standard",
        "how embedding, core and head are put together; byte_shell also reads the bytes of a token back",
        affects=("model.kind", "model.head.reconstruction"),
    )
    positional_encoding_type: names.Position | None = key(
        None,
        "how a position is told",
        affects="model.position",
        aliases=("embedding_positional_encoding", "model.attn.pos_enc_cfg.positional_encoding_type"),
        null="none",
    )
    initialization_fn: Annotated[str, words("xavier kaiming none")] = key(
        "kaiming", "how weights start, but not those of hf_core; none: PyTorch's way", to="model.init.kind", null="none"
    )
    gain: NotNegative = key(1.0, "xavier: factor on the weights", affects="model.init.gain")
    mode: Literal["fan_in", "fan_out"] = key(
        "fan_in", "kaiming: keep the variance of the forward or of the backward pass", affects="model.init.mode"
    )
    nonlinearity: names.Gain = key("gelu", "kaiming: function whose gain is used", affects="model.init.nonlinearity")
    ffn: FeedForwardNetwork
    attn: AttentionLayer
    attention_type: Literal["standard"] | None = _unlisted(
        None, "attention", aliases="model.attn.attention_type", no_effect="STLM has no other attention by this key"
    )
    checkpoint_path: Text | None = _unlisted(
        None,
        "checkpoint to go on from",
        unsupported="a checkpoint of STLM's is a pickle that cannot be read safely; export the model to a Hugging Face "
        "folder and name it in quintet: {model: {init: {kind: pretrained, path: FOLDER}}}",
    )
    embedder: Embedder
    lm_head: LmHead


class LrScheduler(DialectSection):
    """How the learning rate changes; `lr_scheduler: NAME` says the same."""

    nestings = ("training.lr_scheduler",)
    shorthand = "name"

    name: names.Scheduler = key(
        "cosine", "cosine; constant has no warm-up; others are PyTorch's", affects=("schedule.kind", "schedule.name")
    )
    params: dict[str, Any] | None = _unlisted(None, "arguments of its class", affects="schedule.arguments")


class Dataloader(DialectSection):
    """One stream of documents, cut where a sample is full; `dataloader: NAME` says the same."""

    nestings = ("training.dataloader",)
    shorthand = "name"

    name: Annotated[str, words(names.DATALOADERS)] = key(
        "standard", "how documents become samples", affects="data.packing", aliases="trainer.dataloader_name"
    )


class Datasampling(DialectSection):
    """The order of the samples; `datasampling: NAME` says the same."""

    shorthand = "name"

    name: Annotated[str, words("standard")] = key(
        "standard", "which samples come when: in a random order", affects="data.shuffle"
    )


class LossFn(DialectSection):
    """The loss; `loss_fn: NAME` says the same."""

    nestings = ("training.loss_fn",)
    shorthand = "name"

    name: names.Loss = key(
        "cross_entropy", "cross_entropy of the next token; next_token_mlm hides tokens to predict", to="loss.kind"
    )


class DropoutScheduler(DialectSection):
    """How the rate of every dropout changes."""

    nestings = ("training.dropout_scheduler",)
    documented = False

    dropout_type: Literal["constant", "linear", "triangle"] | None = key(
        None,
        "how the rate of every dropout changes; the first step counts as 0",
        to="dropout_schedule.kind",
        affects="dropout_schedule.first",
    )
    dropout: Fraction | None = key(None, "constant: the rate", to="dropout_schedule.rate")
    start_dropout_p: Fraction | None = key(None, "linear: the rate up to start_iter", to="dropout_schedule.start")
    end_dropout_p: Fraction | None = key(None, "linear: the rate from end_iter on", to="dropout_schedule.end")
    start_iter: Count | None = key(None, "linear: where the line begins", to="dropout_schedule.first_step")
    end_iter: Positive | None = key(None, "linear: where the line ends", to="dropout_schedule.last_step")
    dropout_trough: Fraction | None = key(None, "triangle: the lowest rate", to="dropout_schedule.low")
    dropout_peak: Fraction | None = key(None, "triangle: the highest rate", to="dropout_schedule.high")
    num_iterations: Positive | None = key(None, "triangle: steps of all cycles", to="dropout_schedule.steps")
    num_cycles: Positive | None = key(None, "triangle: cycles", to="dropout_schedule.cycles")
    cycle_factor: float | None = key(
        None,
        "triangle",
        unsupported="no version of STLM reads it; give dropout_trough, dropout_peak, num_iterations and num_cycles",
    )


@_refuses("decoupled_weight_decay")
class Optimizer(DialectSection):
    """The optimizer and its learning rate."""

    nestings = ("training.optimizer",)
    gradient_filter: Any = _unlisted(None, "experiment", unsupported=EXPERIMENT, noop_values=("None", "none", False))
    optimizer_name: names.Optimizers = key(
        "AdamW",
        "AdamW; nanoGPTadamW leaves biases and norms without decay; others are PyTorch's",
        affects=("optimizer.kind", "optimizer.name", "optimizer.decay"),
        aliases=("name", "trainer.optimizer_name"),
    )
    lr: float = key(6e-4, "learning rate", ge=0, affects="optimizer.lr")
    min_lr: NotNegative = key(6e-6, "rate at the end of the decay", affects="schedule.min_lr")
    weight_decay: NotNegative = key(0.01, "weight decay", affects="optimizer.weight_decay")
    beta1: Share = key(0.9, "decay of the average of the gradient", affects="optimizer.betas")
    beta2: Share = key(0.999, "decay of the average of its square", affects="optimizer.betas")
    grad_clip: Annotated[NotNegative, FalseIsZero] = key(
        1.0,
        "largest norm of the gradient; 0 does not clip",
        affects="train.clip_norm",
        aliases=("gradient_clipping", "trainer.gradient_clipping"),
    )
    params: dict[str, Any] | None = _unlisted(
        None, "arguments of the optimizer's class", affects="optimizer.arguments", aliases="trainer.optimizer_params"
    )
    warmup_iters: Count | None = _unlisted(
        None, "warm-up where trainer.warmup_iters is not given", affects="schedule.warmup_steps"
    )


@_refuses("use_collate_fn")
class Trainer(DialectSection):
    """Data, length, batches and rhythm of the run."""

    nestings = ("trainer.training", "training")

    trainer_type: Annotated[str, words("base_trainer mock_trainer")] = key(
        "base_trainer",
        "what trains; mock_trainer validates the weights that there are and does not train",
        affects=("trainer.kind", "evaluate.only"),
        aliases="trainer",
    )
    dataset: Names = key(
        ..., "datasets: STLM's names, paths or OWNER/NAME on the hub", affects="data.sources", aliases="dataset_names"
    )
    batch_size: Positive = key(..., "samples in one forward and backward pass", to="train.micro_batch_size")
    gradient_accumulation_steps: Positive = key(..., "passes whose gradients make one step", to="train.accumulation")
    max_iters: Positive = key(..., "steps", to="train.steps", aliases="max_iter")
    decay_lr: bool = key(
        True,
        "false keeps the rate after the warm-up",
        affects="schedule.kind",
        aliases=("trainer.optimizer.decay_lr", "training.optimizer.decay_lr"),
    )
    lr_decay_iters: Positive | None = key(
        None,
        "steps from the end of the warm-up to min_lr; max_iters when not given",
        affects="schedule.decay_steps",
        aliases="trainer.lr_scheduler.lr_decay_iters",
    )
    warmup_iters: Count | None = key(
        None, "steps of the warm-up", affects="schedule.warmup_steps", aliases="trainer.lr_scheduler.warmup_iters"
    )
    eval_interval: Positive = key(
        2000, "steps between validations, from step 0 on", to="evaluate.every", aliases="trainer.eval.eval_interval"
    )
    log_interval: Positive = key(10, "steps between logs of training metrics", to="train.log_every")
    checkpoint_interval: Positive = key(10_000, "steps between checkpoints", to="checkpoint.every")
    lr_scheduler: LrScheduler
    dataloader: Dataloader
    datasampling: Datasampling
    preprocessor_name: Annotated[str, words("text_preprocessor")] | None = _unlisted(
        None, "what is done to a text", no_effect="the only one there is: texts are read as they are"
    )
    loss_fn: LossFn
    run_eval: bool | None = _unlisted(
        None, "whether there are validations at all", affects=("evaluate.every", "evaluate.at_start")
    )
    run_profiler: bool | None = _unlisted(
        None, "profile of the first steps", no_effect="a profile changes nothing that is trained; none is made"
    )
    load_prev_optimizer_state: bool | None = _unlisted(
        None, "optimizer too", no_effect="read with model.checkpoint_path alone; a run of Quintet is continued whole"
    )
    dropout_scheduler: DropoutScheduler
    optimizer: Optimizer
    eval: Evaluation


class Logging(DialectSection):
    """Weights & Biases."""

    wandb_log: bool = key(False, "metrics to Weights & Biases", affects="track")
    wandb_project: Text = key("SuperTinyLanguageModels", "project there", affects="track")
    wandb_run_name: Text | None = key(
        None, "name of the run and its folder; else the file's", affects=("name", "track"), aliases="run_name"
    )
    group_name: Text | None = _unlisted(None, "group there", affects="track")


class Paths(DialectSection):
    """Folders."""

    output_dir: Text | None = key(None, "folder in which the run's folder is made", to="runs_dir")
    data_dir: Text | None = key(None, "folder of tokenized data and of trained tokenizers", to="data.cache_dir")
    checkpoint_dir: Text | None = key(None, "folder of checkpoints; else in the run's", to="checkpoint.dir")
    eval_dir: Text | None = key(
        None,
        "folder of evaluation files",
        no_effect="STLM's own benchmarks lie on the hub since the document; nothing is read from it or written to it",
    )


class General(DialectSection):
    """Logging, folders, seed and device."""

    logging: Logging
    paths: Paths
    seed: Count | None = key(None, "seed of everything random", to="seed")
    device: names.Device = key("cuda", "where to train; the default is CUDA where there is one", affects="train.device")
    max_num_cores: Positive | None = _unlisted(None, "processes that tokenise", to="data.processes")


class File(DialectSection):
    """A run file of SuperTinyLanguageModels."""

    model: Model
    trainer: Trainer
    general: General
    teachermodel: Any = _unlisted(None, "distillation", unsupported=EXPERIMENT)
