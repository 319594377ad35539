"""The keys of VectorLM (docs/config.md of VectorInstitute/vectorlm, and its configs folder)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.types import (
    AboveZero,
    Arguments,
    Count,
    Fraction,
    NotNegative,
    Positive,
    Share,
    Text,
    one_of,
    switch,
)
from quintet.config.documents import IGNORED
from quintet.config.section import Value, key

TRAIN, DATA, RAW = "train_parameters", "dataset", "dataset_preprocess"
LORA = f"{TRAIN}.lora_peft_config"
PLATEAU = "plateau-with-warmup"
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy", PLATEAU,
)  # fmt: skip
"""The names of transformers.SchedulerType, and VectorLM's own, which its document spells `plataeu-with-warmup`."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "NO_SHARD": {"kind": "ddp"},
    "FULL_SHARD": {"kind": "fsdp", "shard": "full"},
    "SHARD_GRAD_OP": {"kind": "fsdp", "shard": "grad_op"},
    "HYBRID_SHARD": {"kind": "hsdp", "shard": "full"},
    "_HYBRID_SHARD_ZERO2": {"kind": "hsdp", "shard": "grad_op"},
}
"""The native section `parallel` for each name of torch.distributed.fsdp.ShardingStrategy."""

Schedule = Annotated[str, one_of(by={name: name for name in SCHEDULES} | {"plataeu-with-warmup": PLATEAU})]
Strategy = Annotated[str, one_of(*STRATEGIES)]


def _read_false(value: Any) -> bool:
    if value is not False:
        raise ValueError("must be false: frozen adapters cannot be trained")
    return False


PartOfEpoch = Annotated[float, Field(gt=0, le=1)]
NotFrozen = Annotated[bool, Value("false", _read_false, json={"const": False})]


def _unsupported_lora() -> Any:
    return key(None, "a setting of peft.LoraConfig", unsupported="is no setting of Quintet's adapters; leave it out")


def _refused(reason: str, help: str = "a key of VectorLM's first versions") -> Any:
    return key(None, help, documented=False, unsupported=reason)


def _older(instead: str) -> Any:
    return _refused(f"is older than the document; {instead}")


_SEPARATOR = "dataset_preprocess.seperator decides it: fine-tuning sets it, and pretraining leaves it out"


class Optimizer(DialectSection):
    """Arguments of torch.optim.AdamW."""

    documented = False
    nestings = ("optimizer",)

    lr: NotNegative = key(0.001, "highest learning rate", to="optimizer.lr")
    weight_decay: NotNegative = key(0.01, "decay of all weights", to="optimizer.weight_decay")
    betas: tuple[Share, Share] | None = key(
        None, "decay of the averages of the gradient and of its square", to="optimizer.arguments.betas"
    )
    eps: NotNegative | None = key(None, "added to the root of the second average", to="optimizer.arguments.eps")
    amsgrad: bool | None = key(None, "the AMSGrad variant", to="optimizer.arguments.amsgrad")
    maximize: bool | None = key(None, "maximize the loss", to="optimizer.arguments.maximize")
    foreach: bool | None = key(None, "the kernel for many tensors at once", to="optimizer.arguments.foreach")
    capturable: bool | None = key(None, "support of CUDA graphs", no_effect="CUDA graphs are not used")
    differentiable: bool | None = key(None, "gradients through the step", no_effect="nothing trains through a step")
    fused: bool | None = key(None, "the fused kernel", no_effect="it is used unless foreach is given")


class LoraPeftConfig(DialectSection):
    """Adapters, by the arguments of peft.LoraConfig."""

    documented = False
    nestings = ("lora_peft_config",)

    task_type: Literal["CAUSAL_LM"] | None = key(None, "what the adapted model is for", affects="model.lora")
    inference_mode: NotFrozen | None = key(None, "freeze the adapters", affects="model.lora")
    r: Positive | None = key(None, "rank of the adapters; 8 if not given", to="model.lora.rank")
    lora_alpha: AboveZero | None = key(
        None, "the update is scaled by lora_alpha / r; 8 if not given", to="model.lora.alpha"
    )
    lora_dropout: Fraction | None = key(None, "dropout on the input of the adapters", to="model.lora.dropout")
    target_modules: Text | tuple[Text, ...] | None = key(
        None, "modules with an adapter; else those that peft has for the family", affects="model.lora.targets"
    )
    bias: Any = _unsupported_lora()
    modules_to_save: Any = _unsupported_lora()
    use_rslora: Any = _unsupported_lora()
    use_dora: Any = _unsupported_lora()
    layers_to_transform: Any = _unsupported_lora()
    layers_pattern: Any = _unsupported_lora()
    rank_pattern: Any = _unsupported_lora()
    alpha_pattern: Any = _unsupported_lora()
    exclude_modules: Any = _unsupported_lora()
    init_lora_weights: Any = _unsupported_lora()
    fan_in_fan_out: Any = _unsupported_lora()


class TrainParameters(DialectSection):
    """Training: length, devices, precision, optimizer, schedule, evaluation and checkpoints."""

    nestings = ("",)

    output_dir: Text = key(..., "the run's folder", affects=("runs_dir", "name"))
    max_seq_len: int = key(
        0,
        "maximum tokens of a sample, one more than its inputs; null, 0 or less: the model's number of positions",
        affects="data.sequence_length",
        null=0,
    )
    epochs: Positive = key(..., "passes over the training dataset", to="train.epochs")
    seed: Count | None = key(None, "seed of everything random", to="seed")
    sharding_strategy: Strategy | None = key(
        None, "how FSDP shards the model over devices", affects=("parallel.kind", "parallel.shard")
    )
    use_mp: Annotated[str, switch("bf16", "fp32")] = key(
        False, "matrix products in bf16; weights and averages stay in fp32", to="train.precision"
    )
    use_activation_checkpointing: bool = key(
        False, "compute each layer again in the backward pass", to="model.gradient_checkpointing"
    )
    use_flash_attention: bool = key(
        False, "FlashAttention-2, PyTorch's if it is not installed; needs use_mp", affects="model.attention_backend"
    )
    low_cpu_mem_usage: bool | None = key(
        None,
        "load the weights once for all processes of a machine",
        documented=False,
        no_effect="sharded weights are read by the first process and sent to the others; with NO_SHARD each process "
        "reads all",
    )
    max_grad_norm: AboveZero | None = key(
        None, "largest norm of a step's gradient; null does not clip", affects="train.clip_norm"
    )
    gradient_accumulation_steps: Positive = key(
        1, "micro-batches of a step on each device", to="train.accumulation", affects="train.batch_size_per_device"
    )
    min_lr: NotNegative | None = key(
        None, "lowest rate of the schedules with_min_lr; else 0", affects="schedule.arguments", documented=False
    )
    lr_scheduler_kwargs: Arguments | None = key(
        None, "other arguments of the schedule, by name", affects="schedule.arguments", documented=False
    )
    lr_scheduler_type: Schedule = key(
        ...,
        "schedule of the learning rate: a name of transformers.SchedulerType, or plateau-with-warmup",
        affects=("schedule.kind", "schedule.name"),
    )
    warmup_ratio: Fraction = key(0.0, "part of all steps that warms up", affects="schedule.warmup_steps")
    checkpointing_enabled: bool = key(
        True, "save checkpoints during training; the final one is always written", affects="checkpoint.every_epochs"
    )
    logging_steps: Positive = key(..., "micro-batches between evaluations", affects="evaluate.every")
    save_frequency: PartOfEpoch | None = key(
        None, "part of an epoch between checkpoints; needed unless disabled", affects="checkpoint.every_epochs"
    )
    batch_size: Any = _refused(
        "is not read by VectorLM: dataset.train_bs sets the samples of a micro-batch; leave it out",
        "samples of a micro-batch",
    )
    num_processes: Any = _older("`quintet train --nproc N` or torchrun starts the processes; leave it out")
    sampler: Any = _refused(
        "belongs to a change that VectorLM never merged; set quintet: {sample: {prompts: [...]}} instead",
        "texts written during training",
    )
    optimizer: Optimizer
    lora_peft_config: LoraPeftConfig


class Dataset(DialectSection):
    """Processed datasets."""

    ignore_index: int = key(
        IGNORED,
        "the label that means no loss",
        affects=("data.sources[0].document.ignore_index", "data.validation_sources[0].document.ignore_index"),
    )
    eval_bs: Positive | None = key(None, "samples evaluated at once", to="evaluate.batch_size")
    train_bs: Positive = key(
        ..., "samples of a micro-batch", to="train.micro_batch_size", affects="train.batch_size_per_device"
    )
    train_ds: Text | None = key(None, "processed dataset to train on", affects="data.sources[0].path")
    eval_ds: Text | None = key(None, "processed dataset to evaluate on", affects="data.validation_sources[0].path")
    save_proc_ds: Any = _older("set dataset_preprocess.save_path")
    dataset_format: Any = _older("set dataset_preprocess.dataset_format")
    dataset_type: Any = _older(_SEPARATOR)
    data_fields: Any = _older("set dataset_preprocess.data_field")
    test_ds: Any = _older("set dataset.eval_ds")


class DatasetPreprocess(DialectSection):
    """How `quintet prepare` makes a processed dataset from documents."""

    ignore_index: int = key(IGNORED, "the label that `quintet prepare` writes where there is no loss")
    dataset_format: Literal["hf"] = key(
        "hf", "format of the datasets", no_effect="all datasets of VectorLM are Hugging Face datasets"
    )
    dataset_type: Any = _older(_SEPARATOR)
    data_field: Text = key("text", "column with the text", affects="data.sources[0].document.field")
    packing_type: Literal["full", "partial"] | None = key(
        None,
        "full: join all documents and cut them; partial: cut each document; null: each document is a sample",
        affects=("data.packing.kind", "data.packing.join"),
    )
    overlap: Count = key(0, "tokens that a chunk repeats from the chunk before", affects="data.packing.overlap")
    add_bos_eos_tokens: bool = key(
        True, "each sample begins with the tokenizer's BOS and ends with its EOS", affects="data.packing.add_bos_eos"
    )
    from_disk: bool = key(
        True, "save_to_disk wrote load_path; false: a hub name or data files", affects="data.sources[0].path"
    )
    seperator: Text | None = key(
        None,
        "the loss starts after its first occurrence; documents without it are dropped",
        affects="data.sources[0].document.separator",
        aliases="separator",
    )
    load_path: Text | None = key(None, "dataset to preprocess", affects="data.sources[0].path")
    split: Text | None = key(None, "split of load_path", affects="data.sources[0].split")
    save_path: Text | None = key(None, "folder that `quintet prepare` writes the processed dataset to")
    truncate: bool = key(
        False, "truncate documents to max_seq_len instead of packing them", affects="data.packing.kind"
    )
    pre_pend: Text | None = key(None, "text before each document", affects="data.sources[0].document.prefix")


class File(DialectSection):
    """A file of VectorLM."""

    train: Any = _older("set train_parameters, dataset and dataset_preprocess")
    model: Text = key(
        ...,
        "folder of model and tokenizer; VectorLM's profiling files leave it to the command line: model=FOLDER",
        to="model.name_or_path",
    )
    enable_wandb_logging: bool = key(False, "log the run to Weights & Biases, as wandb_config says", affects="track")
    wandb_config: Arguments | None = key(None, "arguments of wandb.init, by name", affects="track[0].arguments")
    train_parameters: TrainParameters
    dataset: Dataset
    dataset_preprocess: DatasetPreprocess
