"""The keys of VectorLM (docs/config.md of VectorInstitute/vectorlm, and its configs folder)."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.table import REQUIRED, Key
from quintet.config.dialects.values import Value, anything, choice, either, flag, listed, mapping, number, text, whole
from quintet.config.documents import IGNORED

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
)
"""transformers.SchedulerType."""

PLATEAU = "plateau-with-warmup"
STRATEGIES: dict[str, dict[str, Any]] = {
    "NO_SHARD": {"kind": "ddp"},
    "FULL_SHARD": {"kind": "fsdp", "shard": "full"},
    "SHARD_GRAD_OP": {"kind": "fsdp", "shard": "grad_op"},
    "HYBRID_SHARD": {"kind": "hsdp", "shard": "full"},
    "_HYBRID_SHARD_ZERO2": {"kind": "hsdp", "shard": "grad_op"},
}
"""torch.distributed.fsdp.ShardingStrategy, and `parallel` for each."""

TRAIN, DATA, RAW = "train_parameters", "dataset", "dataset_preprocess"
LORA = f"{TRAIN}.lora_peft_config"


def switch(on: Any, off: Any) -> Value:
    """true and false, which stand for ``on`` and ``off``."""

    def read(value: Any) -> Any:
        return on if flag().read(value) else off

    def write(value: Any) -> bool:
        if value not in (on, off):
            raise ValueError(f"is neither {on!r} nor {off!r}")
        return value == on

    return Value("true or false", read, write)


def _train(name: str, value: Value, help: str, **more: Any) -> Key:
    """A key of training: in the section of the real files, or flat as the document's headings suggest."""
    return Key(f"{TRAIN}.{name}", value, help, aliases=(name, *more.pop("aliases", ())), **more)


def _optimizer(name: str, value: Value, help: str, **more: Any) -> Key:
    more = {"to": f"optimizer.arguments.{name}", "documented": False, **more}
    return Key(f"{TRAIN}.optimizer.{name}", value, help, aliases=(f"optimizer.{name}",), **more)


def _lora(name: str, value: Value, help: str, **more: Any) -> Key:
    return Key(f"{LORA}.{name}", value, help, aliases=(f"lora_peft_config.{name}",), documented=False, **more)


_OTHER_ADAPTERS = (
    "bias",
    "modules_to_save",
    "use_rslora",
    "use_dora",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "fan_in_fan_out",
)
_ADAPTERS_DIFFER = "Quintet's adapters have no such setting; leave it out"

_RUN = (
    Key("model", text(), "folder of model and tokenizer", to="model.name_or_path", default=REQUIRED),
    Key(
        "enable_wandb_logging",
        flag(),
        "log the run to Weights & Biases, as wandb_config says",
        default=False,
        affects=("track",),
    ),
    Key("wandb_config", mapping(), "arguments of wandb.init, by name", affects=("track[0].arguments",)),
)
_TRAINING = (
    _train("output_dir", text(), "the run's folder", default=REQUIRED, affects=("runs_dir", "name")),
    _train(
        "max_seq_len",
        whole(),
        "most tokens of a sample, one more than are inputs; null, 0 or less: as many as the model has positions",
        affects=("data.sequence_length",),
        null=0,
        default=0,
    ),
    _train("epochs", whole(1), "passes over the training dataset", to="train.epochs", default=REQUIRED),
    _train("seed", whole(), "everything random follows from it", to="seed"),
    _train(
        "sharding_strategy",
        choice(*STRATEGIES),
        "how FSDP spreads the model over devices",
        affects=("parallel.kind", "parallel.shard"),
    ),
    _train(
        "use_mp",
        switch("bf16", "fp32"),
        "matrix products in bf16; weights and averages stay in fp32",
        to="train.precision",
        default="fp32",
    ),
    _train(
        "use_activation_checkpointing",
        flag(),
        "keep only what enters each layer and compute the rest again in the backward pass",
        to="model.gradient_checkpointing",
        default=False,
    ),
    _train(
        "use_flash_attention",
        flag(),
        "FlashAttention-2: the library's where it is installed, else PyTorch's; needs use_mp",
        default=False,
        affects=("model.attention_backend",),
    ),
    _train(
        "low_cpu_mem_usage",
        flag(),
        "load the weights once for all processes of a machine",
        documented=False,
        no_effect="sharded weights are read by the first process and sent to the others; with NO_SHARD each process "
        "has all",
    ),
    _train(
        "max_grad_norm",
        number(above=0),
        "largest norm of a step's gradient; null does not clip",
        affects=("train.clip_norm",),
    ),
    _train(
        "gradient_accumulation_steps",
        whole(1),
        "micro-batches of train_bs samples in a step, on each device",
        to="train.accumulation",
        affects=("train.batch_size_per_device",),
        default=1,
    ),
    _train(
        "min_lr",
        number(0),
        "lowest learning rate of cosine_with_min_lr and cosine_warmup_with_min_lr; 0 when not given",
        documented=False,
        affects=("schedule.arguments",),
    ),
    _train(
        "lr_scheduler_kwargs",
        mapping(),
        "other parameters of the schedule, as transformers names them",
        documented=False,
        affects=("schedule.arguments",),
    ),
    _train(
        "lr_scheduler_type",
        choice(by={**{name: name for name in SCHEDULES}, PLATEAU: PLATEAU, "plataeu-with-warmup": PLATEAU}),
        "schedule of the learning rate: a name of transformers.SchedulerType, or plateau-with-warmup",
        default=REQUIRED,
        affects=("schedule.kind", "schedule.name"),
    ),
    _train(
        "warmup_ratio", number(0, 1), "part of all steps that warms up", default=0.0, affects=("schedule.warmup_steps",)
    ),
    _train(
        "checkpointing_enabled",
        flag(),
        "checkpoints on the way; the final one is written in any case",
        default=True,
        affects=("checkpoint.every_epochs",),
    ),
    _train(
        "logging_steps",
        whole(1),
        "micro-batches from one evaluation to the next",
        default=REQUIRED,
        affects=("evaluate.every",),
    ),
    _train(
        "save_frequency",
        Value("number above 0 to 1", number(0, 1).read),
        "part of an epoch from one checkpoint to the next; must be given unless checkpointing_enabled: false",
        affects=("checkpoint.every_epochs",),
    ),
    _train(
        "sampler",
        anything(),
        "texts written during training",
        documented=False,
        refused="belongs to a change that VectorLM never took in; write quintet: {sample: {prompts: [...]}} instead",
    ),
)
_OPTIMIZER = (
    _optimizer("lr", number(above=0), "highest learning rate", to="optimizer.lr", default=1e-3),
    _optimizer("weight_decay", number(0), "decay of all weights", to="optimizer.weight_decay", default=0.01),
    _optimizer("betas", listed(number(0, below=1), 2), "decay of the averages of the gradient and of its square"),
    _optimizer("eps", number(0), "added to the root of the second average"),
    _optimizer("amsgrad", flag(), "the AMSGrad variant"),
    _optimizer("maximize", flag(), "climb instead of descend"),
    _optimizer("foreach", flag(), "the kernel that takes many tensors at once"),
    _optimizer("capturable", flag(), "for CUDA graphs", to="", no_effect="CUDA graphs are not used"),
    _optimizer(
        "differentiable", flag(), "gradients through the step", to="", no_effect="nothing trains through a step"
    ),
    _optimizer("fused", flag(), "the fused kernel", to="", no_effect="it is taken unless foreach is given"),
)
_ADAPTERS = (
    _lora("task_type", choice("CAUSAL_LM"), "what the adapted model is for", affects=("model.lora",)),
    _lora(
        "inference_mode",
        Value("false", lambda value: _only_false(value)),
        "whether the adapters are frozen",
        affects=("model.lora",),
    ),
    _lora("r", whole(1), "rank of the adapters; 8 when not given", to="model.lora.rank"),
    _lora(
        "lora_alpha", number(above=0), "the update is scaled by lora_alpha / r; 8 when not given", to="model.lora.alpha"
    ),
    _lora("lora_dropout", number(0, below=1), "dropout on what enters the adapters", to="model.lora.dropout"),
    _lora(
        "target_modules",
        either(text(), listed(text())),
        "names of the modules that get one; those that peft takes for the family when not given",
        affects=("model.lora.targets",),
    ),
    *(_lora(name, anything(), "a setting of peft.LoraConfig", refused=_ADAPTERS_DIFFER) for name in _OTHER_ADAPTERS),
)
_DATASET = (
    Key(
        f"{DATA}.ignore_index",
        whole(),
        "the value in the labels that means no loss",
        default=IGNORED,
        affects=("data.sources[0].document.ignore_index", "data.validation_sources[0].document.ignore_index"),
    ),
    Key(f"{DATA}.eval_bs", whole(1), "samples evaluated at once", to="evaluate.batch_size"),
    Key(
        f"{DATA}.train_bs",
        whole(1),
        "samples of a micro-batch on each device",
        to="train.micro_batch_size",
        affects=("train.batch_size_per_device",),
        default=REQUIRED,
    ),
    Key(f"{DATA}.train_ds", text(), "preprocessed dataset to train on", affects=("data.sources[0].path",)),
    Key(f"{DATA}.eval_ds", text(), "preprocessed dataset to evaluate on", affects=("data.validation_sources[0].path",)),
)
_PREPROCESSING = (
    Key(
        f"{RAW}.ignore_index",
        whole(),
        "the value in the labels that `quintet prepare` writes where there is no loss",
        default=IGNORED,
    ),
    Key(
        f"{RAW}.dataset_format",
        choice("hf"),
        "format of the datasets",
        default="hf",
        no_effect="all datasets of VectorLM are of Hugging Face's format",
    ),
    Key(
        f"{RAW}.data_field", text(), "column with the text", default="text", affects=("data.sources[0].document.field",)
    ),
    Key(
        f"{RAW}.packing_type",
        choice("full", "partial"),
        "full: cut all documents one after the other; partial: each by itself; null: a document a sample",
        affects=("data.packing.kind", "data.packing.join"),
    ),
    Key(
        f"{RAW}.overlap",
        whole(0),
        "tokens that a chunk repeats of the one before",
        default=0,
        affects=("data.packing.overlap",),
    ),
    Key(
        f"{RAW}.add_bos_eos_tokens",
        flag(),
        "each sample begins with the tokenizer's BOS and ends with its EOS",
        default=True,
        affects=("data.packing.add_bos_eos",),
    ),
    Key(
        f"{RAW}.from_disk",
        flag(),
        "load_path is a folder that save_to_disk wrote; false: a name on the hub, or a folder of data files",
        default=True,
        affects=("data.sources[0].path",),
    ),
    Key(
        f"{RAW}.seperator",
        text(),
        "the loss begins after its first occurrence; documents without it are left out",
        aliases=(f"{RAW}.separator",),
        affects=("data.sources[0].document.separator",),
    ),
    Key(f"{RAW}.load_path", text(), "dataset to preprocess", affects=("data.sources[0].path",)),
    Key(f"{RAW}.split", text(), "split of load_path", affects=("data.sources[0].split",)),
    Key(
        f"{RAW}.save_path",
        text(),
        "folder that `quintet prepare` writes the processed dataset to",
    ),
    Key(
        f"{RAW}.truncate",
        flag(),
        "cut documents off at max_seq_len instead of packing them",
        default=False,
        affects=("data.packing.kind",),
    ),
    Key(
        f"{RAW}.pre_pend",
        text(),
        "text put in front of every document",
        affects=("data.sources[0].document.prefix",),
    ),
)


def _only_false(value: Any) -> bool:
    if flag().read(value):
        raise ValueError("must be false: frozen adapters cannot be trained")
    return False


KEYS = (*_RUN, *_TRAINING, *_OPTIMIZER, *_ADAPTERS, *_DATASET, *_PREPROCESSING)
