"""PhyAGI's keys of training: those of its own trainer around DeepSpeed, and those that trainers have in common."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.values import period
from quintet.config.dialects.table import SPLIT_MODEL, Key
from quintet.config.dialects.values import (
    Value,
    anything,
    choice,
    duration,
    flag,
    listed,
    mapping,
    number,
    text,
    whole,
)

ARGS = "training_args"
DS = "training_args.ds_config"

SCHEDULES = ("WarmupDecayLR", "WarmupLR", "WarmupCosineLR", "OneCycle", "LRRangeTest", "WarmupDecayCooldownLR")
PIPELINE = "no pipeline is built: each process has all layers, or with ZeRO its part of each"
DEVICE = "the device decides: NCCL between GPUs, gloo between CPUs"
ZERO_ALONE = ("fp16", "bf16", "data_types", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")
"""What of a ds_config is handed to DeepSpeed beside zero_optimization and what our own keys say."""
_COSMETIC = "changes what DeepSpeed prints, and no result"
_AHEAD = "a thread of the run makes batches ahead; which samples they have follows from seed and step alone"
_TRACKER = "`quintet show-batch` shows which samples a step has: they follow from seed and step"


def _arg(path: str, value: Value, help: str, **more: Any) -> Key:
    """A training argument, which the document has at the top."""
    return Key(f"{ARGS}.{path}", value, help, aliases=(path, *more.pop("also", ())), **more)


def _ds(path: str, value: Value, help: str, **more: Any) -> Key:
    """A key of DeepSpeed's configuration."""
    return Key(f"{DS}.{path}", value, help, aliases=(f"ds_config.{path}", *more.pop("also", ())), **more)


def optimizer_keys(section: str, *, documented: bool) -> tuple[Key, ...]:
    """An optimizer's parameters, below ``section``."""
    also = (section.removeprefix(f"{ARGS}."),) if documented else ()
    known = (
        ("lr", number(above=0), "learning rate; most schedules set their own", "optimizer.lr"),
        ("betas", listed(number(0, below=1), 2), "decay of the averages of gradient and square", "optimizer.betas"),
        ("eps", number(above=0), "added to the root of the second average", "optimizer.eps"),
        ("weight_decay", number(0), "decay of all weights", "optimizer.weight_decay"),
    )
    keys = [
        Key(
            f"{section}.{name}",
            value,
            help,
            aliases=tuple(f"{place}.{name}" for place in also),
            documented=documented,
            affects=(native,),
        )
        for name, value, help, native in known
    ]
    for name, value in (
        *((name, number()) for name in ("momentum", "dampening", "alpha", "rho", "lr_decay", "lambd", "t0")),
        *((name, flag()) for name in ("nesterov", "centered", "amsgrad")),
    ):
        more = {"documented": False, "affects": ("optimizer.arguments",)}
        keys.append(Key(f"{section}.{name}", value, "of other optimizers than AdamW", **more))
    return tuple(keys)


_ZERO_SWITCHES = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "allgather_partitions",
    "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save",
)
_ZERO_SIZES = (
    "sub_group_size",
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)
ZERO = (*_ZERO_SWITCHES, *_ZERO_SIZES)
DEEPSPEED = (
    _ds("fp16.enabled", flag(), "matrix products in fp16; weights stay in fp32", affects=("train.precision",)),
    *(
        _ds(f"fp16.{path}", number(0), "of the loss scale, with ZeRO", documented=False, affects=("parallel.config",))
        for path in (
            "initial_scale_power",
            "loss_scale",
            "loss_scale_window",
            "hysteresis",
            "min_loss_scale",
            "consecutive_hysteresis",
        )
    ),
    _ds(
        "bf16.enabled",
        flag(),
        "matrix products in bf16; weights stay in fp32",
        documented=False,
        affects=("train.precision",),
    ),
    _ds("optimizer.type", text(), "AdamW, or a class of torch.optim", affects=("optimizer.kind", "optimizer.name")),
    *optimizer_keys(f"{DS}.optimizer.params", documented=True),
    _ds(
        "optimizer.params.adam_w_mode",
        flag(),
        "false: decay through the gradient, as Adam",
        documented=False,
        affects=("optimizer.kind",),
    ),
    _ds("optimizer.params.torch_adam", flag(), "PyTorch's code", documented=False, no_effect="it is always PyTorch's"),
    _ds(
        "scheduler.type",
        choice(*SCHEDULES),
        "schedule of the learning rate; a constant one when not given",
        affects=("schedule.kind", "schedule.name"),
    ),
    _ds("scheduler.params", mapping(), "parameters of the schedule, by name", affects=("schedule.arguments",)),
    _ds(
        "zero_optimization.stage",
        whole(0),
        "what is spread over devices: 1 the optimizer's state, 2 gradients too, 3 weights too; above 0 DeepSpeed's "
        "engine takes the steps",
        default=0,
        affects=("parallel.kind", "parallel.config"),
    ),
    *(
        _ds(
            f"zero_optimization.{path}",
            mapping(),
            "what is kept in the memory of the CPU",
            documented=False,
            affects=("parallel.config",),
        )
        for path in ("offload_param", "offload_optimizer")
    ),
    *(
        _ds(
            f"zero_optimization.{path}",
            value,
            "of the stages of ZeRO",
            documented=False,
            affects=("parallel.config",),
        )
        for names, value in ((_ZERO_SWITCHES, flag()), (_ZERO_SIZES, whole(0)))
        for path in names
    ),
    _ds(
        "gradient_clipping",
        number(0),
        "largest norm of the gradient; 0 does not clip",
        default=0.0,
        also=("gradient_clipping", f"{ARGS}.gradient_clipping"),
        affects=("train.clip_norm",),
    ),
    _ds(
        "train_batch_size",
        whole(1),
        "samples of a step, over all devices",
        documented=False,
        affects=("train.batch_size",),
    ),
    _ds(
        "train_micro_batch_size_per_gpu",
        whole(1),
        "samples of a pass on a device",
        documented=False,
        affects=("train.micro_batch_size", "train.batch_size_per_device"),
    ),
    _ds(
        "gradient_accumulation_steps",
        whole(1),
        "passes of a step on each device",
        documented=False,
        affects=("train.accumulation", "train.batch_size_per_device"),
    ),
    *(
        _ds(path, value, "of DeepSpeed's reports", documented=False, no_effect=_COSMETIC)
        for path, value in (("steps_per_print", whole()), ("wall_clock_breakdown", flag()), ("dump_state", flag()))
    ),
    *(
        _ds(path, value, help, documented=False, affects=("parallel.config",))
        for path, value, help in (
            ("zero_allow_untested_optimizer", flag(), "with ZeRO: allows what DeepSpeed has not tested"),
            ("data_types.grad_accum_dtype", text(), "with ZeRO: numbers of the gradients' sum"),
        )
    ),
)

SHARED = (
    _arg("do_eval", flag(), "validate at all", default=True, affects=("evaluate.every", "evaluate.at_end")),
    _arg(
        "do_final_eval",
        flag(),
        "also validate after the last step",
        default=False,
        documented=False,
        affects=("evaluate.at_end",),
    ),
    _arg(
        "num_train_epochs",
        number(0),
        "passes over the data; 3 by default for trainer: huggingface",
        default=1.0,
        affects=("train.epochs",),
    ),
    _arg("max_steps", whole(-1), "steps, instead of epochs; -1: epochs", default=-1, affects=("train.steps",)),
    _arg(
        "logging_steps",
        duration(),
        "steps between logs of training metrics: progress lines and trackers; up to 1.0, with a point, a fraction of "
        "all; 500 by default for trainer: huggingface",
        default=10,
        affects=("train.log_every",),
    ),
    _arg(
        "save_steps",
        period(),
        "steps between checkpoints, counted as logging_steps",
        default=500,
        affects=("checkpoint.every",),
    ),
    _arg(
        "save_final_checkpoint",
        flag(),
        "also a checkpoint after the last step; true by default for trainer: huggingface, unless save_strategy: no",
        default=False,
        affects=("checkpoint.at_end",),
    ),
    _arg(
        "eval_steps",
        period(),
        "steps between validations, counted as logging_steps; logging_steps by default for trainer: huggingface",
        default=500,
        documented=False,
        affects=("evaluate.every",),
    ),
    _arg(
        "eval_max_steps",
        whole(1),
        "batches to validate on, of each dataset; all when not given",
        documented=False,
        affects=("evaluate.samples", "evaluate.samples_each"),
    ),
    _arg(
        "timeout",
        whole(1),
        "seconds that processes wait for one another",
        documented=False,
        affects=("parallel.timeout_seconds",),
    ),
    _arg("seed", whole(0), "everything random follows from it", to="seed", default=42),
    _arg(
        "dataloader_shuffle",
        flag(),
        "samples in random order, a new one each epoch",
        default=True,
        documented=False,
        affects=("data.shuffle",),
    ),
    *(
        _arg(path, flag(), f"report to {name}", default=False, affects=("track",))
        for path, name in (("mlflow", "MLflow"), ("wandb", "Weights & Biases"))
    ),
    _arg("tensorboard", flag(), "report to TensorBoard", default=False, documented=False, affects=("track",)),
    _arg("wandb_host", text(), "server of Weights & Biases", documented=False, affects=("track",)),
    _arg(
        "wandb_api_key",
        text(),
        "key of Weights & Biases",
        documented=False,
        refused="belongs in no file: set the environment variable WANDB_API_KEY",
    ),
    *(
        _arg(path, whole(0), help, documented=False, pending="a batch that grows over the run", noop_values=(0,))
        for path, help in (
            ("train_batch_size_init_rampup", "first batch"),
            ("train_batch_size_per_rampup", "samples that are added"),
            ("rampup_steps", "steps between additions"),
        )
    ),
    *(
        _arg(path, whole(), help, documented=False, pending=SPLIT_MODEL, noop_values=(1, 0))
        for path, help in (
            ("pipe_parallel_size", "pipeline parallelism"),
            ("tensor_parallel_size", "tensor parallelism"),
            ("context_parallel_size", "context parallelism"),
        )
    ),
    *(
        _arg(path, value, help, documented=False, no_effect=why)
        for path, value, help, why in (
            ("pipe_parallel_partition_method", anything(), "how layers are shared out", PIPELINE),
            ("pipe_parallel_activation_checkpoint_steps", whole(0), "of the pipeline", PIPELINE),
            ("backend", text(), "how processes talk", DEVICE),
            ("batch_tracker", flag(), "lists the samples of each step", _TRACKER),
            ("batch_tracker_save_steps", number(), "steps between such lists", _TRACKER),
            (
                "eval_dataloader_shuffle",
                flag(),
                "order of the validation",
                "validation always has the same samples, whose order changes nothing",
            ),
            ("dataloader_pin_memory", flag(), "page-locked memory", _AHEAD),
            ("dataloader_num_workers", whole(0), "processes that make batches", _AHEAD),
            ("dataloader_prefetch_factor", whole(1), "batches that each makes ahead", _AHEAD),
            (
                "load_checkpoint_num_tries",
                whole(1),
                "older checkpoints that are tried",
                "a checkpoint is whole or not there, so that the last one can always be read",
            ),
            ("log_dir", text(), "folder of the logs", "logs lie in the run's folder"),
        )
    ),
)
