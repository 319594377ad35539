"""The keys of piano-gpt: those of its document and of its own files."""

from typing import Annotated, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.piano import values
from quintet.config.dialects.types import (
    AboveZero,
    Arguments,
    Count,
    Device,
    Fraction,
    Listed,
    NotNegative,
    Positive,
    Precision,
    Share,
    Text,
)
from quintet.config.section import key

_GENERATES = "`quintet evaluate RUN --records 30 --temperature 1` generates and measures; leave it out"


class Augmentation(DialectSection):
    """Copies of each sample, played faster, slower, higher or lower."""

    speed_change_factors: Annotated[tuple[AboveZero, ...], Listed] = key(
        (), "factors on the speed of copies of each sample", affects="data.packing"
    )
    max_pitch_shift: Count = key(
        0, "largest shift of copies of each sample, lower and higher, in semitones", affects="data.packing"
    )


class Model(DialectSection):
    """GPT-2 as in nanoGPT."""

    n_layer: Positive = key(12, "transformer layers", to="model.layers")
    n_head: Positive = key(12, "attention heads", to="model.attention.heads")
    n_embd: Positive = key(768, "hidden size", to="model.width")
    dropout: Fraction = key(
        0.0,
        "dropout on the embedding, on attention weights, and on the outputs of attention and feed-forward; also of "
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
        "times with an embedding",
        documented=False,
        unsupported="belongs to a model with an embedding of each note's time, of which piano-gpt has no weights; "
        "leave it out for GPT-2",
    )


class System(DialectSection):
    """Device and precision."""

    device: Device = key("cuda", "where to train", to="train.device")
    dtype: Precision = key("float16", "precision of matrix products; float16 on GPUs only", affects="train.precision")
    compile: bool = key(True, "compile the blocks on a GPU; false never does", affects="train.compile")
    data_workers: Count = key(64, "processes that prepare data", affects="data.processes")


class Ddp(DialectSection):
    """Distributed training."""

    backend: Text = key("nccl", "distributed backend", no_effect="the device decides: NCCL for GPUs, gloo for CPUs")


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
        "data set to validate on, its split `validation`, and `test` if `eval_splits` names it: a name on the hub, or "
        "a folder of a data set or of MIDI files",
        affects="data.validation_sources",
    )
    extra_datasets: tuple[Text, ...] | None = key(
        None, "data sets to train on, the split `train` of each; must be given for music", affects="data.sources"
    )
    pause_detection_threshold: AboveZero = key(
        4.0, "seconds of silence at which a piece is cut", affects=("data.sources", "data.validation_sources")
    )
    augmentation: Augmentation
    dataset_class: Literal["AugmentedDataset", "MidiTokenizedDataset"] | None = key(
        None,
        "script that builds the data set",
        aliases="name",
        documented=False,
        no_effect="`stage` decides what the notes become, and they are tokenized once",
    )
    tokenizer_cfg: Arguments | None = key(
        None,
        "a copy of the section `tokenizer`",
        aliases="tokenizer_parameters",
        documented=False,
        no_effect="the original replaces it with the section `tokenizer`",
    )


class Training(DialectSection):
    """The trainer's settings in the project's own files."""

    documented = False
    min_notes_per_record: int | None = key(
        None, "fewest notes of a record, whose number is drawn", ge=2, affects="data.packing"
    )
    max_notes_per_record: int | None = key(
        None, "most notes of a record; `data.notes_per_record` if their number is fixed", ge=2, affects="data.packing"
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
        "class of the tokenizer, ExponentialTimeTokenizer when not given; a run to start from brings its own",
        affects="tokenizer",
        aliases=("name", "tokenizer.tokenizer"),
    )
    config: Arguments | None = key(
        None,
        "settings of ExponentialTimeTokenizer: `time_unit`, `max_time_step`, `n_velocity_bins`, `n_special_ids`",
        affects="tokenizer",
    )
    base_tokenizer: Literal["ExponentialTimeTokenizer"] | None = key(
        None, "tokenizer whose ids AwesomeMidiTokenizer merges", affects="tokenizer"
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
        16, "passes per step", to="train.accumulation", aliases="training.gradient_accumulation_steps"
    )
    max_iters: Positive = key(300000, "optimizer steps", to="train.steps")
    weight_decay: NotNegative = key(0.1, "decay of matrices", to="optimizer.weight_decay")
    grad_clip: NotNegative = key(1.0, "largest norm of the gradient; 0 does not clip", affects="train.clip_norm")
    beta1: Share = key(0.9, "decay of the average of the gradient", affects="optimizer.betas")
    beta2: Share = key(0.95, "decay of the average of its square", affects="optimizer.betas")


class Lr(DialectSection):
    """The learning rate."""

    learning_rate: NotNegative = key(8e-05, "peak learning rate", to="optimizer.lr", aliases="optimizer.learning_rate")
    min_lr: NotNegative = key(8e-06, "learning rate at the end of the decay", affects="schedule.min_lr")
    warmup_iters: Count = key(1000, "steps in which the learning rate rises", affects="schedule.warmup_steps")
    decay_lr: bool = key(
        True, "warm-up, then half a cosine; false keeps the rate constant, without a warm-up", affects="schedule.kind"
    )
    lr_decay_iters: Positive | None = key(
        None, "step at which `min_lr` is reached; `optimizer.max_iters` when not given", affects="schedule.decay_steps"
    )
    type: Literal["CosineDecay", "Constant"] | None = key(
        None, "`decay_lr: true` or `false`, in other words", affects="schedule.kind", documented=False
    )


class Logging(DialectSection):
    """Progress lines and Weights & Biases."""

    wandb_log: bool = key(True, "log to Weights & Biases", affects="track")
    wandb_project: Text = key("piano-gpt", "project there", affects="track")
    log_interval: Positive = key(20, "steps between logs of training metrics", to="train.log_every")
    wandb_entity: Text | None = key(None, "team there", affects="track", documented=False)
    wandb_run_name_suffix: Text | None = key(
        None, "name there, after midi-gpt2-", affects="track", aliases=".run_name_suffix", documented=False
    )
    wandb_time_suffix: Text | None = key(None, "end of that name, usually the time", affects="track", documented=False)


class File(DialectSection):
    """A file of piano-gpt."""

    stage: values.Stage = key(
        "piano_task",
        "what the model is trained on: tasks on records of notes, or the next token of pieces",
        affects="data.packing",
        aliases=("model_task", "task"),
    )
    init_from: values.Start = key(
        "scratch_next_token",
        "`scratch_next_token` or `scratch` for new weights; or the folder of a run, whose model is taken, or a Hugging "
        "Face checkpoint",
        affects="model.init",
        aliases="checkpoint_path",
    )
    loss_masking: values.Masking = key(
        "pretraining",
        "pretraining: a loss on prompts and answers; finetuning: on answers only",
        affects="data.learn_prompts",
        aliases="training.loss_masking",
    )
    tasks: values.Tasks = key(
        "TODO",
        "tasks of `piano_task`: names, or classes with `params` or `param_range`; `TODO`: the twelve that piano-gpt "
        "was trained on",
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
    eval_iters: Positive = key(100, "batches per split", affects=("evaluate.samples", "evaluate.samples_each"))
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
        "init: new weights; tune: those of `checkpoint_path`; for resume, `quintet train` the run's folder",
        affects="model.init",
        documented=False,
    )
    metrics: Arguments | None = key(
        None, "metrics of the generated pieces", documented=False, no_effect="the original never reads it"
    )
    eval_splits: values.Splits = key(
        values.REPORTED,
        "splits to validate on: `full_val` is the split `validation`, `test` the split `test`, a composer the pieces "
        "of that surname in `validation`. The best checkpoint is that of `full_val`",
        affects=("data.validation_sources", "evaluate.best_by"),
        documented=False,
    )
    temperature: NotNegative | None = key(None, "temperature of generation", documented=False, unsupported=_GENERATES)
    n_eval_samples: Positive | None = key(None, "pieces to generate", documented=False, unsupported=_GENERATES)
