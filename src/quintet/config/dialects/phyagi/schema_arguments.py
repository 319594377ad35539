"""The keys of PhyAGI's training arguments: those that all its trainers share, and those of the Trainers of the
transformers library and of Lightning."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.phyagi.schema_ds_config import DeepSpeedConfig, OptimizerParams, undocumented
from quintet.config.dialects.phyagi.values import HF_OPTIMIZERS, PRECISIONS, STRATEGIES
from quintet.config.dialects.types import (
    AboveZero,
    Arguments,
    Count,
    Fraction,
    NotNegative,
    Positive,
    Share,
    Text,
    duration,
    finite,
    one_of,
)
from quintet.config.section import Before, Value, key, number_in


def _period() -> Value:
    """Steps or a fraction of all steps; 0 and -1 mean never and are read as None."""
    steps = duration()

    def read(value: Any) -> Any:
        number = number_in(value)
        return None if not isinstance(number, bool) and number in (0, -1) else steps.read(value)

    return Value(f"{steps.words}; -1: never", read, lambda value: -1 if value is None else value, steps.json)


def _passes() -> Value:
    """A number of passes; 1.0 means all."""

    def read(value: Any) -> int | float:
        number = finite(value, expected := "a whole number, or 1.0 for all")
        if number < 0 or (isinstance(number, float) and number not in (0.0, 1.0)):
            raise ValueError(f"must be {expected}" + ("" if number < 0 else "; a part of them is not supported"))
        return int(number) if number == 0 else number

    return Value("whole number; 1.0: all", read, json={"type": "number"})


Passes = Annotated[int | float, _passes()]
Steps = Annotated[int | float, duration()]
Period = Annotated[int | float | None, _period()]
OnlyNorm = Annotated[str, one_of("norm")]
OnlyStep = Annotated[str, one_of("step")]
When = Literal["no", "steps", "epoch"]
Accelerator = Annotated[str, one_of(by={"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"})]
Optim = Annotated[str, one_of(by=HF_OPTIMIZERS)]
Precision = Annotated[
    str,
    one_of(by=PRECISIONS),
    Before(lambda value: str(value) if type(value) is int else value, lambda usual: {"enum": [*usual["enum"], 16, 32]}),
]
_LAUNCHER = "the launcher sets the number of processes: `quintet train FILE --nproc N`, or torchrun"
_PIPELINE = "there is no pipeline: each process has all layers, or its ZeRO shard of each"
_LOADER = "a thread makes batches ahead of the steps; their samples follow from the seed and the step alone"
_TRACKER = "`quintet show-batch` shows the samples of a step: they follow from the seed and the step"
_NO_TENSOR_PARALLELISM = "no layer is split over devices"


def model_parallel(help: str, **more: Any) -> Any:
    """A key for the number of devices that a model or a sequence is split over."""
    reason = (
        "no layer or sequence is split over devices here; `quintet: {parallel: {kind: fsdp}}` shards the weights of "
        "a model that is too large for one device"
    )
    return undocumented(None, help, unsupported=reason, noop_values=(1, 0), **more)


def _shared(default: Any, help: str, *, documented: bool = False, **more: Any) -> Any:
    """An argument of every trainer, which files also have at the top."""
    return key(default, help, aliases=".", documented=documented, **more)


def _argument(default: Any, help: str, **more: Any) -> Any:
    """An argument of every trainer that the document has."""
    return _shared(default, help, documented=True, **more)


def _growing(help: str) -> Any:
    return _shared(None, help, unsupported="a batch has one size for the whole run here", noop_values=0)


class SharedArguments(DialectSection):
    """DeepSpeed's configuration, and the arguments of every trainer."""

    ds_config: DeepSpeedConfig

    do_eval: bool = _argument(True, "validate at all", affects=("evaluate.every", "evaluate.at_end"))
    do_final_eval: bool = _shared(False, "also validate after the last step", affects="evaluate.at_end")
    num_train_epochs: NotNegative = _argument(
        1.0, "passes over the data; 3 by default for trainer: huggingface", affects="train.epochs"
    )
    max_steps: int = _argument(-1, "steps, instead of epochs; -1: epochs", ge=-1, affects="train.steps")
    logging_steps: Steps = _argument(
        10,
        "steps between logs of training metrics: progress lines and trackers; up to 1.0, with a point, a fraction of "
        "all; 500 by default for trainer: huggingface",
        to="train.log_every",
    )
    save_steps: Period = _argument(500, "steps between checkpoints, counted as logging_steps", to="checkpoint.every")
    save_final_checkpoint: bool = _argument(
        False,
        "also a checkpoint after the last step; true by default for trainer: huggingface, unless save_strategy: no",
        to="checkpoint.at_end",
    )
    eval_steps: Period = _shared(
        500, "steps between validations; logging_steps by default for trainer: huggingface", affects="evaluate.every"
    )
    eval_max_steps: Positive | None = _shared(
        None, "batches of each dataset to validate on; else all", affects=("evaluate.samples", "evaluate.samples_each")
    )
    timeout: Positive | None = _shared(
        None, "seconds that processes wait for each other", affects="parallel.timeout_seconds"
    )
    seed: Count = _argument(42, "seed of everything random", to="seed")
    dataloader_shuffle: bool = _shared(True, "samples in random order, a new one each epoch", to="data.shuffle")
    mlflow: bool = _argument(False, "report to MLflow", affects="track")
    wandb: bool = _argument(False, "report to Weights & Biases", affects="track")
    tensorboard: bool = _shared(False, "report to TensorBoard", affects="track")
    wandb_host: Text | None = _shared(None, "server of Weights & Biases", affects="track")
    wandb_api_key: Text | None = _shared(
        None, "key of Weights & Biases", unsupported="belongs in no file: set the environment variable WANDB_API_KEY"
    )
    train_batch_size_init_rampup: Count | None = _growing("first batch size")
    train_batch_size_per_rampup: Count | None = _growing("samples added to the batch at a time")
    rampup_steps: Count | None = _growing("steps between additions")
    pipe_parallel_size: int | None = model_parallel("pipeline parallelism", aliases=".")
    tensor_parallel_size: int | None = model_parallel("tensor parallelism", aliases=".")
    context_parallel_size: int | None = model_parallel("context parallelism", aliases=".")
    pipe_parallel_partition_method: Any = _shared(None, "partition of the layers", no_effect=_PIPELINE)
    pipe_parallel_activation_checkpoint_steps: Count | None = _shared(
        None, "activation checkpointing of the pipeline", no_effect=_PIPELINE
    )
    backend: Text | None = _shared(
        None, "communication backend", no_effect="the device decides: NCCL between GPUs, gloo between CPUs"
    )
    batch_tracker: bool | None = _shared(None, "list the samples of each step", no_effect=_TRACKER)
    batch_tracker_save_steps: float | None = _shared(None, "steps between such lists", no_effect=_TRACKER)
    eval_dataloader_shuffle: bool | None = _shared(
        None, "order of the validation", no_effect="validation always has the same samples, whose order changes nothing"
    )
    dataloader_pin_memory: bool | None = _shared(None, "page-locked memory", no_effect=_LOADER)
    dataloader_num_workers: Count | None = _shared(None, "processes that make batches", no_effect=_LOADER)
    dataloader_prefetch_factor: Positive | None = _shared(None, "batches that each makes ahead", no_effect=_LOADER)
    load_checkpoint_num_tries: Positive | None = _shared(
        None,
        "older checkpoints to try",
        no_effect="a checkpoint is complete or not there, so that the last one can always be read",
    )
    log_dir: Text | None = _shared(None, "folder of the logs", no_effect="logs are in the run's folder")


class HuggingFaceArguments(DialectSection):
    """Arguments of the transformers library's Trainer; others are passed on to it by name."""

    learning_rate: NotNegative = key(5e-5, "learning rate", to="optimizer.lr")
    per_device_train_batch_size: Positive = key(8, "samples of a pass", to="train.micro_batch_size")
    per_device_eval_batch_size: Positive = key(8, "samples of a pass of the validation", to="evaluate.batch_size")
    gradient_accumulation_steps: Positive = key(1, "passes of a step", to="train.accumulation")
    optim: Optim = key("adamw_torch", "optimizer", affects="optimizer.kind")
    weight_decay: NotNegative = key(0.0, "decay of the matrices", to="optimizer.weight_decay")
    adam_beta1: Share = key(0.9, "decay of the average of the gradient", affects="optimizer.betas")
    adam_beta2: Share = key(0.999, "decay of the average of its square", affects="optimizer.betas")
    adam_epsilon: AboveZero = key(1e-8, "added to the root of the second average", affects="optimizer.eps")
    lr_scheduler_type: Text = key("linear", "schedule of the learning rate", to="schedule.name")
    lr_scheduler_kwargs: Arguments | None = key(None, "parameters of the schedule", to="schedule.arguments")
    warmup_ratio: Fraction = key(0.0, "part of the run that warms up", affects="schedule.warmup_steps")
    warmup_steps: Count = key(0, "steps that warm up", affects="schedule.warmup_steps")
    max_grad_norm: NotNegative = key(1.0, "largest norm of the gradient; 0 does not clip", affects="train.clip_norm")
    bf16: bool = key(False, "matrix products in bf16", affects="train.precision")
    fp16: bool = key(False, "matrix products in fp16", affects="train.precision")
    eval_strategy: When = key("no", "when to validate", affects="evaluate.every", aliases="evaluation_strategy")
    save_strategy: When = key("steps", "when to save", affects="checkpoint.every")
    save_total_limit: Positive | None = key(None, "checkpoints to keep; else all", to="checkpoint.keep")
    eval_on_start: bool = key(False, "also validate before the first step", to="evaluate.at_start")
    label_smoothing_factor: Share | None = key(None, "label smoothing", to="loss.label_smoothing")
    torch_compile: bool | None = key(None, "compile the blocks", affects="train.compile")
    use_cpu: bool = key(False, "train on the CPU", affects="train.device")


class LightningTrainer(DialectSection):
    """Arguments of Lightning's Trainer; others are passed on to it by name."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})
    documented = False

    max_epochs: int | None = key(None, "passes over the data; -1: no limit", ge=-1, affects="train.epochs")
    max_steps: int | None = key(None, "steps; -1: no limit", ge=-1, affects="train.steps")
    precision: Precision | None = key(None, "precision of the matrix products", to="train.precision")
    log_every_n_steps: Positive = key(
        50, "steps between logs of training metrics: progress lines and trackers", to="train.log_every"
    )
    accumulate_grad_batches: Positive = key(1, "passes of a step", to="train.accumulation")
    gradient_clip_val: NotNegative | None = key(None, "largest norm of the gradient", affects="train.clip_norm")
    gradient_clip_algorithm: OnlyNorm | None = key(None, "what is clipped", affects="train.clip_norm")
    val_check_interval: Steps | None = key(
        None, "passes between validations, or a fraction of an epoch", affects="evaluate.every"
    )
    check_val_every_n_epoch: Positive = key(1, "epochs between validations", affects="evaluate.every")
    limit_val_batches: Passes = key(1.0, "passes of a validation; 1.0: all", affects="evaluate.samples")
    accelerator: Accelerator = key("auto", "device", to="train.device")
    devices: Any = key(None, "devices", no_effect=_LAUNCHER)
    num_nodes: Positive | None = key(None, "machines", no_effect=_LAUNCHER)
    num_sanity_val_steps: int | None = key(
        None, "passes of a trial validation", ge=-1, no_effect="the dry run before the first step validates, too"
    )


class LightningStrategy(DialectSection):
    """How devices share the work."""

    documented = False

    type: Annotated[str, one_of(*STRATEGIES)] | None = key(
        None,
        "how devices share the model; any but auto replaces Lightning's loop by Quintet's, to the same weights",
        affects=("parallel.kind", "trainer.kind"),
    )
    data_parallel_size: Count | None = key(None, "devices with different samples", no_effect=_LAUNCHER)
    context_parallel_size: Count | None = model_parallel("devices that share a sequence")
    tensor_parallel_size: Count | None = model_parallel("devices that share a layer")
    fsdp_cpu_offload: bool | None = key(
        None, "with dctp: weights, gradients and optimizer state in the memory of the CPU", affects="parallel.offload"
    )
    activation_checkpointing: bool | None = key(
        None, "compute each block again in the backward pass", affects="train.activation_checkpointing"
    )
    fsdp_compile: bool | None = key(None, "with dctp: compile each block", affects="train.compile")
    tp_async: bool | None = key(None, "setting of tensor parallelism", no_effect=_NO_TENSOR_PARALLELISM)
    tp_sequence_parallel: bool | None = key(None, "setting of tensor parallelism", no_effect=_NO_TENSOR_PARALLELISM)
    tp_loss_parallel: bool | None = key(None, "setting of tensor parallelism", no_effect=_NO_TENSOR_PARALLELISM)


class LightningOptimizer(DialectSection):
    """The optimizer."""

    documented = False

    type: Text = key("adamw", "optimizer", affects="optimizer.kind")
    params: OptimizerParams


class LightningScheduler(DialectSection):
    """The schedule of the learning rate."""

    documented = False

    type: Text | None = key(None, "schedule, as step", affects="schedule.kind")
    params: Arguments | None = key(None, "parameters of the schedule", affects="schedule.arguments")
    interval: OnlyStep | None = key(None, "what the schedule counts", affects="schedule.kind")
    frequency: Positive | None = key(
        None, "steps that count as one", unsupported="a schedule counts each step here", noop_values=1
    )
    name: Text | None = key(None, "name in logs", no_effect="the learning rate is logged as train/lr")


class LightningModule(DialectSection):
    """PhyAGI's module for Lightning."""

    optimizer: LightningOptimizer
    scheduler: LightningScheduler


class LightningArguments(DialectSection):
    """PhyAGI's training arguments for Lightning."""

    train_micro_batch_size_per_gpu: Positive = key(1, "samples of a pass", to="train.micro_batch_size")
    trainer: LightningTrainer
    strategy: LightningStrategy
    lightning_module: LightningModule


class TrainingArguments(LightningArguments, HuggingFaceArguments, SharedArguments):
    """Training, in the words of one of three trainers."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})
    documented = False

    arguments: Arguments | None = key(
        None, "arguments of the other library's trainer, passed on to it by name", affects="trainer.arguments"
    )
