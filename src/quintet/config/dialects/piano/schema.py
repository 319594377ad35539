"""The keys of piano-gpt: those of its document, and those that its own files have besides."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.types import (
    AboveZero,
    Arguments,
    Count,
    Fraction,
    Listed,
    NotNegative,
    Positive,
    Share,
    Text,
    one_of,
)
from quintet.config.keypath import is_list, is_mapping
from quintet.config.section import Value, key

PIANO_TASK, NEXT_TOKEN = "piano_task", "next_token_pretraining"
EXPONENTIAL, AWESOME = "ExponentialTimeTokenizer", "AwesomeMidiTokenizer"
FULL, TEST = "full_val", "test"
COMPOSERS = (
    "bach", "mozart", "chopin", "balakirev", "beethoven", "brahms", "franck", "haydn", "liszt", "mendelssohn",
    "rachmaninoff", "schubert", "schumann", "scriabin",
)  # fmt: skip
REPORTED = (FULL, "bach", "chopin", "mozart")
"""The splits that piano-gpt's validation reports."""
SCRATCH = ("scratch_next_token", "scratch")
COSINE, CONSTANT = "CosineDecay", "Constant"
TODO = "TODO"
_GENERATES = "`quintet evaluate RUN --records 30 --temperature 1` generates and measures; leave it out"


def _device(value: Any) -> str:
    """A device of PyTorch's, of which the first GPU is the only one that can be named."""
    found = re.fullmatch(r"cuda:(\d+)", value) if isinstance(value, str) else None
    if found and int(found[1]):
        raise ValueError(f"must be cuda; to train on GPU {found[1]}, start with CUDA_VISIBLE_DEVICES={found[1]}")
    if found:
        return "cuda"
    if value not in ("cuda", "cpu", "mps"):
        raise ValueError("must be cuda, cuda:0, cpu or mps")
    return value


def _start(value: Any) -> str:
    """What to start from. Files that are to be tuned leave it empty."""
    if not isinstance(value, str):
        raise ValueError("must be a word or a path")
    if not value:
        raise ValueError("must name a run or checkpoint, as piano-gpt is told on the command line: init_from=FOLDER")
    return value


def _tasks(value: Any) -> list[str]:
    """Tasks by name: what piano-gpt's files write in three ways. An entry with ``param_range`` is several tasks, and
    `TODO` is none. Which names there are is not known here."""
    if is_mapping(value) and set(value) == {"list"}:
        value = value["list"]
    if value in (None, TODO):
        return []
    if not is_list(value):
        raise ValueError(f"must be a list of tasks, or {TODO}")
    return [name for entry in value for name in _names(entry)]


def _names(entry: Any) -> list[str]:
    """The names of an entry: the class followed by each of its parameters, as `TopLineMasking-n_repetitions=2`."""
    if isinstance(entry, str) and entry:
        return [entry]
    if not is_mapping(entry) or not set(entry) <= {"class", "params", "param_range"}:
        raise ValueError("must have tasks of a name, or of `class` with `params` or `param_range`")
    name, params, ranged = (entry.get(key) for key in ("class", "params", "param_range"))
    if not isinstance(name, str):
        raise ValueError("must have tasks of a name, or of `class` with `params` or `param_range`")
    if params is not None and ranged is not None:
        raise ValueError(f"has params and param_range of {name}, which exclude one another")
    if ranged is not None and (not is_list(ranged) or not ranged):
        raise ValueError(f"must have a list as param_range of {name}")
    return [_with(name, one) for one in ranged or [params or {}]]


def _with(name: str, params: Any) -> str:
    if not is_mapping(params) or len(params) > 1 or any(type(value) is not int for value in params.values()):
        raise ValueError(f"must have one parameter of {name} at a time, a whole number")
    return "".join([name, *(f"-{unit}={value}" for unit, value in params.items())])


Device = Annotated[str, Value("`cuda`, `cuda:0`, `cpu`, `mps`", _device)]
Precision = Annotated[str, one_of(by={"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"})]
Stage = Annotated[
    str,
    one_of(
        by={name: name for name in (PIANO_TASK, NEXT_TOKEN)}
        | {"next_token_prediction": NEXT_TOKEN, "multi": PIANO_TASK, "multi_with_composer": PIANO_TASK}
    ),
]
Masking = Annotated[
    str, one_of(by={"pretraining": "pretraining", "finetuning": "finetuning", "pretrianing": "pretraining"})
]
Splits = Annotated[tuple[Annotated[str, one_of(FULL, TEST, *COMPOSERS)], ...], Listed]
TaskNames = Annotated[
    list[str],
    Value("list of names, or of classes with `params` or `param_range`", _tasks, lambda value: value or TODO),
]


class Augmentation(DialectSection):
    """Copies of each sample, played faster, slower, higher or lower."""

    speed_change_factors: Annotated[tuple[AboveZero, ...], Listed] = key(
        (), "each sample is also trained on so many times as fast", affects="data.packing"
    )
    max_pitch_shift: Count = key(
        0, "each sample is also trained on up to so many semitones lower and higher", affects="data.packing"
    )


class Model(DialectSection):
    """GPT-2, as nanoGPT has it."""

    n_layer: Positive = key(12, "transformer layers", to="model.layers")
    n_head: Positive = key(12, "attention heads", to="model.attention.heads")
    n_embd: Positive = key(768, "hidden size", to="model.width")
    dropout: Fraction = key(
        0.0,
        "dropout on the embedding, on attention weights, and on what attention and feed-forward add; also of "
        "a model from a checkpoint",
        affects=("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout"),
    )
    bias: bool = key(
        False,
        "biases of the linear layers and the layer norms; the head has none",
        affects=("model.attention.bias", "model.feedforward.bias", "model.norm"),
    )
    context_size: int = key(
        2048,
        "positions that the model has; `data.context_size` when not given",
        ge=2,
        affects="model.context_length",
        aliases="block_size",
    )
    max_time_steps: Positive | None = key(
        None,
        "times that the model has an embedding for",
        documented=False,
        unsupported="belongs to a model with an embedding of each note's time, of which piano-gpt kept no trained one; "
        "leave it out for GPT-2",
    )


class System(DialectSection):
    """Device and numbers."""

    device: Device = key("cuda", "where to train", to="train.device")
    dtype: Precision = key(
        "float16", "numbers of the matrix products; float16 is used on a GPU only", affects="train.precision"
    )
    compile: bool = key(True, "compile the blocks on a GPU; false never does", affects="train.compile")
    data_workers: Count = key(64, "processes that prepare data", affects="data.processes")


class Ddp(DialectSection):
    """Processes."""

    backend: Text = key(
        "nccl",
        "what connects the processes of torchrun",
        no_effect="the device decides: NCCL between GPUs, gloo between CPUs",
    )


class Data(DialectSection):
    """Samples and records."""

    batch_size: Positive = key(
        32,
        "samples of one forward and backward pass",
        to="train.micro_batch_size",
        affects=("evaluate.batch_size", "evaluate.samples"),
        aliases="training.microbatch_size",
    )
    context_size: int = key(
        2048,
        "tokens of a sample; `model.context_size` when not given",
        ge=2,
        affects="data.sequence_length",
        aliases=("training.context_size", "sequence_length"),
    )
    notes_per_record: int = key(
        128,
        "notes of a record, prompt and answer together; `next_token_pretraining` has none",
        ge=2,
        affects="data.packing",
        aliases="training.notes_per_record",
    )


class Dataset(DialectSection):
    """Data sets of notes."""

    base_dataset_name: Text = key(
        "epr-labs/maestro-sustain-v2",
        "data set to validate on, its split `validation`; `test` is read where `eval_splits` names it: a name "
        "on the hub, or a folder of a data set or of MIDI files",
        affects="data.validation_sources",
    )
    extra_datasets: tuple[Text, ...] | None = key(
        None, "data sets to train on, the split `train` of each; must be given for music", affects="data.sources"
    )
    pause_detection_threshold: AboveZero = key(
        4.0,
        "a piece is cut where nothing sounds for longer than so many seconds",
        affects=("data.sources", "data.validation_sources"),
    )
    augmentation: Augmentation
    dataset_class: Literal["AugmentedDataset", "MidiTokenizedDataset"] | None = key(
        None,
        "script that builds the data set",
        aliases="name",
        documented=False,
        no_effect="`stage` says what the notes become, and they are tokenised once",
    )
    tokenizer_cfg: Arguments | None = key(
        None,
        "a copy of the section `tokenizer`",
        aliases="tokenizer_parameters",
        documented=False,
        no_effect="the original puts the section `tokenizer` in its place",
    )


class Training(DialectSection):
    """The trainer's settings in the project's own files."""

    documented = False
    min_notes_per_record: int | None = key(
        None, "fewest notes of a record; how many one has is drawn", ge=2, affects="data.packing"
    )
    max_notes_per_record: int | None = key(
        None,
        "most notes of a record, where they are drawn; the same as `data.notes_per_record` where they are not",
        ge=2,
        affects="data.packing",
    )
    min_n_task_notes: Positive | None = key(
        None, "fewest notes of the part of a record that a task splits; the part is drawn", affects="data.packing"
    )
    prompt_masking: bool | None = key(None, "true is `loss_masking: finetuning`", affects="data.learn_prompts")
    batch_size: Positive | None = key(
        None, "samples of a step, instead of `gradient_accumulation_steps`", affects="train.accumulation"
    )


class Tokenizer(DialectSection):
    """The tokenizer of notes, in the project's own files."""

    documented = False
    class_name: Literal["ExponentialTimeTokenizer", "AwesomeMidiTokenizer"] | None = key(
        None,
        "class of the tokenizer, ExponentialTimeTokenizer when not given; from a run comes its tokenizer",
        affects="tokenizer",
        aliases=("name", "tokenizer.tokenizer"),
    )
    config: Arguments | None = key(
        None,
        "settings of ExponentialTimeTokenizer: `time_unit`, `max_time_step`, `n_velocity_bins`, `n_special_ids`",
        affects="tokenizer",
    )
    base_tokenizer: Literal["ExponentialTimeTokenizer"] | None = key(
        None, "whose ids AwesomeMidiTokenizer merges", affects="tokenizer"
    )
    base_tokenizer_parameters: Arguments | None = key(
        None, "settings of that tokenizer, as in `config`; `min_time_unit` is `time_unit`", affects="tokenizer"
    )
    parameters: Arguments | None = key(
        None,
        "settings of AwesomeMidiTokenizer: `max_vocab_size`, `max_token_length`; of ExponentialTimeTokenizer in older "
        "files: those of `config`",
        affects="tokenizer",
        aliases="tokenizer_parameters",
    )


class Optimizer(DialectSection):
    """AdamW, and the length of a run."""

    gradient_accumulation_steps: Positive = key(
        16,
        "passes whose gradients make one step",
        to="train.accumulation",
        aliases="training.gradient_accumulation_steps",
    )
    max_iters: Positive = key(300000, "optimizer steps", to="train.steps")
    weight_decay: NotNegative = key(0.1, "decay of matrices", to="optimizer.weight_decay")
    grad_clip: NotNegative = key(1.0, "largest norm of the gradient; 0 does not clip", affects="train.clip_norm")
    beta1: Share = key(0.9, "decay of the average of the gradient", affects="optimizer.betas")
    beta2: Share = key(0.95, "decay of the average of its square", affects="optimizer.betas")


class Lr(DialectSection):
    """The learning rate."""

    learning_rate: NotNegative = key(
        8e-05, "highest learning rate", to="optimizer.lr", aliases="optimizer.learning_rate"
    )
    min_lr: NotNegative = key(8e-06, "learning rate at the end of the decay", affects="schedule.min_lr")
    warmup_iters: Count = key(1000, "steps in which the learning rate rises", affects="schedule.warmup_steps")
    decay_lr: bool = key(
        True, "warm-up, then half a cosine; false keeps the rate constant, without a warm-up", affects="schedule.kind"
    )
    lr_decay_iters: Positive | None = key(
        None, "step at which `min_lr` is reached; `optimizer.max_iters` when not given", affects="schedule.decay_steps"
    )
    type: Literal["CosineDecay", "Constant"] | None = key(
        None, "the same as `decay_lr: true` or `false`", affects="schedule.kind", documented=False
    )


class Logging(DialectSection):
    """Progress lines and Weights & Biases."""

    wandb_log: bool = key(True, "log to Weights & Biases", affects="track")
    wandb_project: Text = key("piano-gpt", "project there", affects="track")
    log_interval: Positive = key(
        20, "steps between logs of training metrics: progress lines and trackers", to="train.log_every"
    )
    wandb_entity: Text | None = key(None, "team there", affects="track", documented=False)
    wandb_run_name_suffix: Text | None = key(
        None, "name there, after midi-gpt2-", affects="track", aliases=".run_name_suffix", documented=False
    )
    wandb_time_suffix: Text | None = key(
        None, "what follows in that name, the time as a rule", affects="track", documented=False
    )


class File(DialectSection):
    """A file of piano-gpt."""

    stage: Stage = key(
        "piano_task",
        "what is learnt: tasks on records of notes, or the next token of pieces",
        affects="data.packing",
        aliases=("model_task", "task"),
    )
    init_from: Annotated[str, Value("`scratch_next_token`, `scratch` or a path", _start)] = key(
        "scratch_next_token",
        "`scratch_next_token` or `scratch` for new weights, or what to start from: the folder of a run, whose "
        "model it then is, or a checkpoint of Hugging Face's",
        affects="model.init",
        aliases="checkpoint_path",
    )
    loss_masking: Masking = key(
        "pretraining",
        "pretraining: a loss on prompts and answers; finetuning: on answers alone",
        affects="data.learn_prompts",
        aliases="training.loss_masking",
    )
    tasks: TaskNames = key(
        "TODO",
        "tasks of `piano_task`: names, or classes with `params` or `param_range`; `TODO`: the twelve that "
        "piano-gpt was trained on",
        affects="data.packing",
    )
    model: Model
    system: System
    ddp: Ddp
    data: Data
    dataset: Dataset
    training: Training
    tokenizer: Tokenizer
    optimizer: Optimizer
    lr: Lr
    eval_interval: Positive = key(
        500,
        "steps between validations, the first after the first step; also between checkpoints",
        affects=("evaluate.every", "evaluate.offset", "checkpoint.every"),
    )
    eval_iters: Positive = key(
        100, "batches of each split in a validation", affects=("evaluate.samples", "evaluate.samples_each")
    )
    eval_only: bool = key(False, "validate and do not train", to="evaluate.only")
    logging: Logging
    out_dir: Text | None = key(
        None, "folder in which the run's folder is made", to="runs_dir", aliases="out_dir_relative", documented=False
    )
    always_save_checkpoint: bool | None = key(
        None,
        "keep a checkpoint of each evaluation",
        documented=False,
        no_effect="the original never reads it; the last and the best checkpoint are kept",
    )
    command: Literal["init", "tune", "resume"] | None = key(
        None,
        "init: new weights; tune: those of `checkpoint_path`; resume is `quintet train` of the run's folder",
        affects="model.init",
        documented=False,
    )
    metrics: Arguments | None = key(
        None, "metrics of what an evaluation generates", documented=False, no_effect="the original never reads it"
    )
    eval_splits: Splits = key(
        ("full_val", "bach", "chopin", "mozart"),
        "what is validated on: `full_val` is the split `validation`, `test` the split `test`, a composer the "
        "pieces of that surname in `validation`. The best checkpoint is that of `full_val`",
        affects=("data.validation_sources", "evaluate.best_by"),
        documented=False,
    )
    temperature: NotNegative | None = key(
        None,
        "temperature of what an evaluation generates",
        documented=False,
        unsupported=_GENERATES,
    )
    n_eval_samples: Positive | None = key(
        None,
        "pieces that an evaluation generates",
        documented=False,
        unsupported=_GENERATES,
    )
