"""The keys of PhyAGI: the top of a file, the data and the model."""

import ast
from typing import Annotated, Any, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.phyagi.schema_arguments import TrainingArguments, model_parallel
from quintet.config.dialects.phyagi.schema_ds_config import undocumented
from quintet.config.dialects.phyagi.values import ACTIVATIONS, DTYPES, MIXFORMER, NORMS
from quintet.config.dialects.types import AboveZero, Arguments, Count, Fraction, Positive, Text, finite, one_of, switch
from quintet.config.keypath import is_sequence
from quintet.config.section import Before, Value, key

Concat = Literal["random", "sequential", "random_iterable", "random_chat"]
OnlyMha = Annotated[str, one_of("mha")]
OnlyCausal = Annotated[str, one_of("causal_lm")]
OnlyMean = Annotated[str, one_of("mean")]
Task = Literal["causal_lm", "seq_cls"]
Activation = Annotated[str, one_of(by=ACTIVATIONS)]
NormClass = Annotated[str, one_of(by=NORMS)]
Dtype = Annotated[str, one_of(by=DTYPES)]
Label = Annotated[Text, Before(lambda value: str(value) if type(value) is int else value, lambda usual: {})]
_MASKS = "only random_mask_prob uses it"
_TOKENIZED = "the dataset is tokenized already"


def _split() -> Value:
    """A number of tokens; with a point, a fraction of them."""

    def read(value: Any) -> int | float:
        number = finite(value, expected := "a number of tokens, or with a point a fraction of them")
        if number < 0:
            raise ValueError(f"must be {expected}")
        if isinstance(number, float) and number >= 1:
            raise ValueError("must be below 1.0, which would leave nothing to train on; without a point it is tokens")
        return number

    return Value("whole number of tokens, or fraction of them", read, json={"type": "number", "minimum": 0})


def _window() -> Value:
    """A number of earlier positions, by itself or in a pair (before, after) whose second number is 0.

    It is read as the native window, which counts the own position, too.
    """

    def read(value: Any) -> int:
        try:
            value = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError):
            raise ValueError('must be a number of positions, or a pair such as "(2047, 0)"') from None
        if is_sequence(value) and len(value) == 2:
            if value[1] not in (0, -1):
                raise ValueError("must have 0 as its second number: later positions are not seen")
            value = value[0]
        number = finite(value, "a whole number")
        if number != int(number):
            raise ValueError("must be a whole number")
        if number < 0:
            raise ValueError("must be at least 0")
        return int(number) + 1

    json = {"type": ["integer", "string", "array"]}
    return Value("positions, or a pair (before, 0)", read, lambda window: window - 1, json)


Split = Annotated[int | float, _split()]
Window = Annotated[int, _window()]


def _kernel(help: str) -> Any:
    return key(None, help, no_effect="the fastest kernel with the same numbers is always used")


class Dataset(DialectSection):
    """A dataset of tokens, to train and validate on."""

    cache_dir: Text | None = key(
        None,
        "folder with train.npy, validation.npy and tokenizer.pkl, or one .npy file to train on",
        affects=("data.sources[].path", "data.validation_sources[].path"),
    )
    train_file: Text | None = key(
        None, ".npy file to train on; `NAME_labels.npy` beside it says what has no loss", affects="data.sources[].path"
    )
    validation_file: Text | None = key(None, ".npy file to validate on", affects="data.validation_sources[].path")
    validation_split: Split | None = key(
        None,
        "instead of a validation file: the first tokens of the training file, a number or a fraction of them",
        affects=("data.validation_sources[].stop", "data.sources[].start"),
    )
    tokenizer_file: Text | None = key(
        None, "pickled tokenizer of the tokens; else tokenizer.pkl of cache_dir, or ids only", affects="tokenizer"
    )
    seq_len: int = key(2048, "tokens of a sample, the same for all datasets", ge=2, affects="data.sequence_length")
    shift_labels: bool = key(
        False, "a sample's last position predicts the next token; false: no loss", affects="data.packing.predict_next"
    )
    weight: AboveZero = key(1.0, "how often an epoch repeats the samples", affects="data.sources[].repeat")
    label: Label | None = key(
        None, "name in reports; else its number", affects=("data.sources[].label", "data.validation_sources[].label")
    )
    dataset_path: Text | None = undocumented(
        None, ".npy file of tokens, for dataset_provider: stream_lm", affects="data.sources[].path"
    )
    random_mask_prob: Fraction | None = undocumented(
        None,
        "part of the marked tokens that has no loss",
        unsupported="is for data whose ids above 32767 are marks, which no source here has; leave it out",
    )
    ignore_token_id: int | None = undocumented(None, "the id that random_mask_prob writes", no_effect=_MASKS)
    seed: int | None = undocumented(None, "seed of random_mask_prob", no_effect=_MASKS)
    use_eos_token: Any = undocumented(None, "a key of older files", no_effect=_TOKENIZED)
    original_tokenizer: Any = undocumented(None, "a key of older files", no_effect=_TOKENIZED)
    num_shards: Any = undocumented(None, "a key of older files", no_effect=_TOKENIZED)


class Collator(DialectSection):
    """The targets that count in the loss."""

    nestings = ("dataset[].dataset_collator",)

    cls: Literal["lm", "chat"] = key("lm", "class of the collator", affects="loss.kind")
    ignore_token_ids: tuple[Count, ...] | None = key(
        None, "ids that do not count in the loss", affects="loss.ignore_token_ids"
    )
    ignore_token_range: tuple[Count | None, Count | None] | None = key(
        None,
        "first and last id that do not count in the loss",
        affects="loss.ignore_token_range",
        aliases="ignore_token_id_range",
    )
    ignore_index: int = key(
        -100,
        "value of labels that have no loss; from 0 on it is also an id that is never predicted",
        affects=("data.sources[].ignore_index", "loss.ignore_token_ids"),
        aliases="model.architecture.loss.",
    )


class Mixer(DialectSection):
    """Attention."""

    documented = False

    mixer_cls: OnlyMha | None = key(None, "class of the attention", affects="model.attention.kind")
    head_dim: Positive | None = key(None, "size of a head; n_embd / n_head", to="model.attention.head_dim")
    causal: Annotated[str, switch("causal", "bidirectional")] = key(
        True, "only earlier positions are seen; false: all", to="model.attention.kind"
    )
    use_alibi: bool | None = key(None, "ALiBi", unsupported="no attention here has linear biases", noop_values=False)
    softmax_scale: AboveZero | None = key(None, "factor on the products", to="model.attention.scale")
    window_size: Window | None = key(None, "earlier positions that are seen", to="model.attention.window")
    dropout: Fraction = key(
        0.0, "dropout on attention weights", to="model.attention.dropout", aliases="model.attn_pdrop"
    )
    bias: bool = key(
        True, "biases of queries, keys and values", to="model.attention.bias", affects="model.attention.output_bias"
    )
    out_bias: bool | None = key(None, "bias of attention's output; else as bias", affects="model.attention.output_bias")
    qk_norm: Annotated[str, switch("head", "none")] = key(
        False, "norm of the queries and keys of each head", to="model.attention.qk_norm"
    )
    rotary_base: float = key(10_000.0, "base of the rotary wavelengths", gt=1, affects="model.position.theta")
    rotary_scale_base: float | None = key(None, "factor of rope_scaling", ge=1, affects="model.position.scaling.factor")
    rope_scaling: Arguments | None = key(
        None, "how wavelengths are stretched: rope_type yarn or linear, and factor", affects="model.position.scaling"
    )
    flash_attn: bool | None = _kernel("FlashAttention")
    flash_rotary: bool | None = _kernel("a fused kernel of the rotary positions")
    fused_dense: bool | None = _kernel("a fused kernel of the projections")


class Mlp(DialectSection):
    """The feed-forward network."""

    documented = False

    mlp_cls: Annotated[str, one_of(by={"mlp": "plain", "fused_mlp": "plain", "glu": "gated"})] = key(
        "mlp", "mlp and fused_mlp: down(activation(up(x))); glu: gated, without biases", to="model.feedforward.kind"
    )


class Norm(DialectSection):
    """Norms."""

    documented = False

    norm_cls: NormClass = key("torch", "layer norm, or root-mean-square", to="model.norm.kind")


class Head(DialectSection):
    """The head."""

    documented = False

    head_cls: Task | None = key(None, "class of the head", affects="model.head")
    use_bias: bool = key(True, "bias of the head", to="model.head.bias")


class Loss(DialectSection):
    """The loss."""

    documented = False

    loss_cls: OnlyCausal | None = key(None, "class of the loss", affects="loss.kind")
    shift_labels: bool = key(
        True, "the model shifts the labels; false only if the dataset does", affects="data.packing.predict_next"
    )
    reduction: OnlyMean | None = key(None, "the loss is the mean over tokens", affects="loss.kind")
    flash_cross_entropy_loss: bool | None = _kernel("a kernel of the loss")
    inplace_backward: bool | None = _kernel("a kernel of the loss")


class Architecture(DialectSection):
    """The parts of each block, and what follows the blocks."""

    documented = False

    block_cls: Annotated[str, one_of(by={"parallel": "parallel", "sequential": "pre_norm"})] = key(
        "parallel", "parallel: attention and feed-forward of one x; or sequential", to="model.block", aliases="path"
    )
    mixer: Mixer
    mlp: Mlp
    norm: Norm
    head: Head
    loss: Loss


class Model(DialectSection):
    """The model."""

    model_type: Text = key(
        MIXFORMER, f"{MIXFORMER}, or a type of the transformers library, with random weights", affects="model.kind"
    )
    vocab_size: Positive = key(50304, "number of ids", to="model.vocab_size", affects="tokenizer.vocab_size")
    n_positions: int = key(
        2048, "maximum length", ge=2, to="model.context_length", aliases=("n_ctx", "max_position_embeddings")
    )
    n_embd: Positive = key(1024, "width", to="model.width", aliases="hidden_size")
    n_layer: Positive = key(20, "blocks", to="model.layers", aliases="num_hidden_layers")
    n_head: Positive = key(
        16, "attention heads", to="model.attention.heads", aliases=("num_attention_heads", "model.architecture.mixer.")
    )
    rotary_dim: int | None = key(
        None,
        "features of a head that are rotated; all if 0 or not given, none if below 0",
        affects=("model.position.fraction", "model.position.kind"),
        aliases="model.architecture.mixer.",
    )
    embd_pdrop: Fraction = key(0.0, "dropout on the embedding", to="model.embedding_dropout")
    resid_pdrop: Fraction = key(0.0, "dropout on what attention and feed-forward add", to="model.residual_dropout")
    activation_function: Activation = key(
        "gelu_new", "activation function", to="model.feedforward.activation", aliases="model.architecture.mlp.act_fn"
    )
    layer_norm_epsilon: AboveZero = key(
        1e-5, "added to the variance in every norm", to="model.norm.eps", aliases="model.architecture.norm.eps"
    )
    initializer_range: AboveZero = key(0.02, "standard deviation of the first weights", affects="model.init.std")
    pad_vocab_size_multiple: Positive = key(
        64, "the rows of embedding and head are a multiple of it", to="model.pad_vocab_size_multiple"
    )
    use_cache: bool = key(
        True,
        "cache keys and values while text is generated",
        no_effect="generation always caches keys and values, which changes no text; training never does",
    )
    embd_layer: Literal["default", "positional"] = key(
        "default", "positional adds learned positions, beside rotary ones", affects="model.position.learned"
    )
    pretrained_model_name_or_path: Text | None = undocumented(
        None,
        f"folder or hub name of the model to start from; with model_type: {MIXFORMER} a run or a model of that form",
        affects=("model.name_or_path", "model.init"),
    )
    model_task: Task | None = undocumented(None, "what the model is for", affects="model.kind")
    use_torch_compile: bool | None = undocumented(None, "compile the blocks; false: automatic", affects="train.compile")
    torch_dtype: Dtype | None = undocumented(
        None, "precision of the matrix products, if the training arguments give none", affects="train.precision"
    )
    trust_remote_code: bool | None = undocumented(
        None, "run the code that comes with a model of the hub", affects="model.trust_remote_code"
    )
    n_inner: Positive | None = undocumented(
        None, "feed-forward width; 4 × n_embd", affects="model.feedforward.width", aliases="model.architecture.mlp."
    )
    n_head_kv: Positive | None = undocumented(
        None, "key and value heads; else n_head", to="model.attention.kv_heads", aliases="model.architecture.mixer."
    )
    tie_word_embeddings: bool = undocumented(False, "one matrix for embedding and head", to="model.tie_embeddings")
    gradient_checkpointing: bool | None = undocumented(
        None,
        "compute each block again in the backward pass",
        affects=("model.gradient_checkpointing", "train.activation_checkpointing"),
    )
    cross_sample_token_id: Count | None = undocumented(
        None,
        "id that ends a document; tokens see only those of their own document",
        affects=("model.attention.mask", "tokenizer.end_id", "data.sources[].document"),
        aliases="cross_sample_sep",
    )
    cp_size: int | None = model_parallel("context parallelism")
    tp_size: int | None = model_parallel("tensor parallelism")
    architecture: Architecture


class File(DialectSection):
    """A run file of PhyAGI."""

    data_root: Text = key(
        '${oc.env:DATA_ROOT,"/mnt/aifshared"}', "folder of the data, for `${data_root}`", affects="data.sources"
    )
    output_root: Text = key(
        '${oc.env:OUTPUT_ROOT,"~/phyagi_results"}',
        "folder of the outputs, for `${output_root}`; if the file gives it, a relative `output_dir` is inside it",
        affects="runs_dir",
    )
    output_dir: Text = key(..., "folder of the run, which is continued if it exists", affects=("runs_dir", "name"))
    trainer: Literal["deepspeed", "huggingface", "lightning"] | None = undocumented(
        None, "the trainer that the training arguments are for; if not given, they decide", affects="trainer.kind"
    )
    dataset: tuple[Dataset, ...] = key((), "tokens to train and validate on")
    dataset_concat: Concat = key(
        "random",
        "random and random_iterable: from all datasets at once; sequential: one after the other",
        affects="data.mixing",
        aliases="dataset[].",
    )
    eval_dataset_concat: Concat | None = key(
        None,
        "null: validate on each dataset by itself; any other value: on all together, with the label 0",
        affects="data.validation_sources[].label",
        aliases="dataset[].",
    )
    dataset_provider: Literal["lm", "stream_lm", "chat"] = key(
        "lm",
        "lm: samples in random order; stream_lm: in their order, of one dataset or with dataset_concat: sequential",
        affects=("data.shuffle", "data.sources[].kind"),
        aliases="dataset[].",
    )
    dataset_global_weight: AboveZero = undocumented(
        1.0, "factor on the weight of each dataset", affects="data.sources[].repeat", aliases="dataset[]."
    )
    dataset_collator: Collator
    model: Model
    training_args: TrainingArguments
