"""The keys of PhyAGI: the top of a file, its data and its model; `arguments` has those of training."""

from __future__ import annotations

import ast
from typing import Annotated, Any, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.phyagi.arguments import TrainingArguments, further, split_model
from quintet.config.dialects.types import AboveZero, Arguments, Count, Fraction, Positive, Text, finite, one_of
from quintet.config.keypath import is_sequence
from quintet.config.section import Before, Value, key

MIXFORMER = "mixformer-sequential"
Concat = Literal["random", "sequential", "random_iterable", "random_chat"]
OnlyMha = Annotated[str, one_of("mha")]
OnlyCausal = Annotated[str, one_of("causal_lm")]
OnlyMean = Annotated[str, one_of("mean")]
Task = Literal["causal_lm", "seq_cls"]
ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_approx", "gelu_pytorch_tanh"), "gelu_tanh"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **{name: name for name in ("relu", "relu2", "leaky_relu", "silu")},
    **{"swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "linear": "none"},
}
Activation = Annotated[str, one_of(by=ACTIVATIONS)]
NormClass = Annotated[str, one_of(by={"torch": "layer", "low_precision": "layer", "rms": "rms", "flash_rms": "rms"})]
NUMBERS = {"bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "half", "float16"), "fp32": ("fp32", "float", "float32")}
DTYPES = {f"{prefix}{name}": ours for prefix in ("", "torch.") for ours, names in NUMBERS.items() for name in names}
Dtype = Annotated[str, one_of(by=DTYPES | {"auto": "auto"})]
Label = Annotated[Text, Before(lambda value: str(value) if type(value) is int else value, lambda usual: {})]
_MASKS = "is used by random_mask_prob alone"
_MADE = "is of no use to tokens made ready"


def _split() -> Value:
    """A number of tokens, or with a point a fraction of them."""

    def read(value: Any) -> int | float:
        found = finite(value, wanted := "a number of tokens, or with a point a fraction of them")
        if found < 0:
            raise ValueError(f"must be {wanted}")
        if isinstance(found, float) and found >= 1:
            raise ValueError("must be below 1.0, which would leave nothing to train on; without a point it is tokens")
        return found

    return Value("whole number of tokens, or fraction of them", read, json={"type": "number", "minimum": 0})


def _window() -> Value:
    """Positions before the own one that are seen: a number, or a pair (before, after) of which the second is 0."""

    def read(value: Any) -> int:
        wanted = 'a number of positions, or a pair such as "(2047, 0)"'
        try:
            found = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError):
            raise ValueError(f"must be {wanted}") from None
        if is_sequence(found) and len(found) == 2:
            if found[1] not in (0, -1):
                raise ValueError("must have 0 as its second number: later positions are not seen")
            found = found[0]
        found = finite(found, "a whole number")
        if found != int(found) or found < 0:
            raise ValueError("must be a whole number" if found != int(found) else "must be at least 0")
        return int(found)

    return Value("positions, or a pair (before, 0)", read, json={"type": ["integer", "string", "array"]})


Split = Annotated[int | float, _split()]
Window = Annotated[int, _window()]


def _kernel(help: str) -> Any:
    return key(None, help, no_effect="the fastest kernel that gives the same numbers is taken by itself")


class Dataset(DialectSection):
    """Tokens to train and validate on."""

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
        "instead of a validation file: the first tokens of the training file, so many or this part of them",
        affects=("data.validation_sources[].stop", "data.sources[].start"),
    )
    tokenizer_file: Text | None = key(
        None, "pickled tokenizer of the tokens; else tokenizer.pkl of cache_dir, or ids alone", affects="tokenizer"
    )
    seq_len: int = key(2048, "tokens of a sample, the same for all datasets", ge=2, affects="data.sequence_length")
    shift_labels: bool = key(
        False, "a sample's last position predicts the next token; false: no loss", affects="data.packing.predict_next"
    )
    weight: AboveZero = key(1.0, "how often an epoch has the samples", affects="data.sources[].repeat")
    label: Label | None = key(
        None, "name in reports; its number if none", affects=("data.sources[].label", "data.validation_sources[].label")
    )
    dataset_path: Text | None = further(
        None, ".npy file of tokens, for dataset_provider: stream_lm", affects="data.sources[].path"
    )
    random_mask_prob: Fraction | None = further(
        None,
        "part of the marked tokens that has no loss",
        unsupported="cannot be followed: it takes ids above 32767 for marks, which they are in no other data; leave it "
        "out",
    )
    ignore_token_id: int | None = further(None, "what random_mask_prob writes", no_effect=_MASKS)
    seed: int | None = further(None, "of random_mask_prob", no_effect=_MASKS)
    use_eos_token: Any = further(None, "left from older files", no_effect=_MADE)
    original_tokenizer: Any = further(None, "left from older files", no_effect=_MADE)
    num_shards: Any = further(None, "left from older files", no_effect=_MADE)


class Collator(DialectSection):
    """The targets that have a loss."""

    nestings = ("dataset[].dataset_collator",)

    cls: Literal["lm", "chat"] = key("lm", "class of the collator", affects="loss.kind")
    ignore_token_ids: tuple[Count, ...] | None = key(None, "ids never predicted", affects="loss.ignore_token_ids")
    ignore_token_range: tuple[Count | None, Count | None] | None = key(
        None, "ids, first to last, without a loss", affects="loss.ignore_token_range", aliases="ignore_token_id_range"
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
    causal: bool = key(True, "only earlier positions are seen; false: all", affects="model.attention.kind")
    use_alibi: bool | None = key(
        None, "linear biases", unsupported="no attention here has linear biases", noop_values=False
    )
    softmax_scale: AboveZero | None = key(None, "factor on the products", to="model.attention.scale")
    window_size: Window | None = key(None, "earlier positions that are seen", affects="model.attention.window")
    dropout: Fraction = key(
        0.0, "dropout on attention weights", to="model.attention.dropout", aliases="model.attn_pdrop"
    )
    bias: bool = key(
        True, "biases of queries, keys and values", to="model.attention.bias", affects="model.attention.output_bias"
    )
    out_bias: bool | None = key(None, "bias of attention's output; as bias", affects="model.attention.output_bias")
    qk_norm: bool = key(False, "norm of queries and keys of each head", affects="model.attention.qk_norm")
    rotary_base: float = key(10_000.0, "base of the wavelengths", gt=1, affects="model.position.theta")
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
        True, "the model shifts the labels; false only where the dataset does", affects="data.packing.predict_next"
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
    vocab_size: Positive = key(50304, "ids", to="model.vocab_size", affects="tokenizer.vocab_size")
    n_positions: int = key(
        2048, "most positions", ge=2, to="model.context_length", aliases=("n_ctx", "max_position_embeddings")
    )
    n_embd: Positive = key(1024, "width", to="model.width", aliases="hidden_size")
    n_layer: Positive = key(20, "blocks", to="model.layers", aliases="num_hidden_layers")
    n_head: Positive = key(
        16, "attention heads", to="model.attention.heads", aliases=("num_attention_heads", "model.architecture.mixer.")
    )
    rotary_dim: int | None = key(
        None,
        "features of a head that are turned; all of them when 0 or not given, none when below 0",
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
        "keys and values are kept while text is generated",
        no_effect="generation always keeps keys and values: it is faster and writes the same; training never does",
    )
    embd_layer: Literal["default", "positional"] = key(
        "default", "positional adds a learned vector a position, beside rotary ones", affects="model.position.learned"
    )
    pretrained_model_name_or_path: Text | None = further(
        None,
        f"folder or hub name of the model to start from; with model_type: {MIXFORMER} a run or a model of that form",
        affects=("model.name_or_path", "model.init"),
    )
    model_task: Task | None = further(None, "what the model is for", affects="model.kind")
    use_torch_compile: bool | None = further(None, "compile the blocks; false: automatic", affects="train.compile")
    torch_dtype: Dtype | None = further(
        None, "numbers of the matrix products, where the training arguments say none", affects="train.precision"
    )
    trust_remote_code: bool | None = further(
        None, "run the code beside a hub's model", affects="model.trust_remote_code"
    )
    n_inner: Positive | None = further(
        None, "feed-forward width; 4 × n_embd", affects="model.feedforward.width", aliases="model.architecture.mlp."
    )
    n_head_kv: Positive | None = further(
        None, "key and value heads; else n_head", to="model.attention.kv_heads", aliases="model.architecture.mixer."
    )
    tie_word_embeddings: bool = further(False, "one matrix for embedding and head", to="model.tie_embeddings")
    gradient_checkpointing: bool | None = further(
        None,
        "keep each block's input only, compute the rest again backward",
        affects=("model.gradient_checkpointing", "train.activation_checkpointing"),
    )
    cross_sample_token_id: Count | None = further(
        None,
        "id that ends a document; tokens see those of their own document only",
        affects=("model.attention.mask", "tokenizer.end_id", "data.sources[].document"),
        aliases="cross_sample_sep",
    )
    cp_size: int | None = split_model("context parallelism")
    tp_size: int | None = split_model("tensor parallelism")
    architecture: Architecture


class File(DialectSection):
    """A run file of PhyAGI."""

    data_root: Text = key(
        '${oc.env:DATA_ROOT,"/mnt/aifshared"}', "folder of the data, for `${data_root}`", affects="data.sources"
    )
    output_root: Text = key(
        '${oc.env:OUTPUT_ROOT,"~/phyagi_results"}',
        "folder of the outputs, for `${output_root}`; where the file gives it, a relative `output_dir` lies in it",
        affects="runs_dir",
    )
    output_dir: Text = key(..., "folder of the run, continued when it is there already", affects=("runs_dir", "name"))
    trainer: Literal["deepspeed", "huggingface", "lightning"] | None = further(
        None, "whose training arguments the file has; else found out from them", affects="trainer.kind"
    )
    dataset: tuple[Dataset, ...] = key((), "tokens to train and validate on")
    dataset_concat: Concat = key(
        "random",
        "random draws from all datasets at once, and so does random_iterable; sequential takes one after the other",
        affects="data.mixing",
        aliases="dataset[].",
    )
    eval_dataset_concat: Concat | None = key(
        None,
        "null validates on each dataset by itself; any other value on all together, with the label 0",
        affects="data.validation_sources[].label",
        aliases="dataset[].",
    )
    dataset_provider: Literal["lm", "stream_lm", "chat"] = key(
        "lm",
        "lm draws samples at random; stream_lm keeps their order, of one dataset or with dataset_concat: sequential",
        affects=("data.shuffle", "data.sources[].kind"),
        aliases="dataset[].",
    )
    dataset_global_weight: AboveZero = further(
        1.0, "factor on every weight", affects="data.sources[].repeat", aliases="dataset[]."
    )
    dataset_collator: Collator
    model: Model
    training_args: TrainingArguments
