"""PhyAGI's keys for the Trainers of the transformers library and of Lightning."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.training_keys import ARGS, optimizer_keys
from quintet.config.dialects.phyagi.values import passes, precision
from quintet.config.dialects.table import SPLIT_MODEL, Key
from quintet.config.dialects.values import Value, anything, choice, duration, flag, mapping, number, text, whole

PL = "training_args.trainer"
MODULE = "training_args.lightning_module"
ARGUMENTS = "training_args.arguments"
"""Where `shape` puts the arguments of another library's trainer that this table does not have."""

_STARTED = "as many processes train as are started: `quintet train FILE --nproc N`, or torchrun"


def _stage(stage: int, *, offload: bool = False) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})}
    return {"kind": "deepspeed", "config": {"zero_optimization": zero}}


STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "ddp": {"kind": "ddp"},
    "dctp": {"kind": "fsdp"},
    "fsdp": {"kind": "fsdp"},
    "deepspeed": _stage(2),
    "deepspeed_stage_1": _stage(1),
    "deepspeed_stage_2": _stage(2),
    "deepspeed_stage_3": _stage(3),
    "deepspeed_stage_1_offload": _stage(1, offload=True),
    "deepspeed_stage_2_offload": _stage(2, offload=True),
    "deepspeed_stage_3_offload": _stage(3, offload=True),
}
"""PhyAGI's and Lightning's names of strategies, and `parallel` for each; dctp shards in torch's way."""


def _own(path: str, value: Value, help: str, **more: Any) -> Key:
    """A key that only one trainer has, at one place."""
    return Key(path, value, help, documented=False, **more)


HUGGINGFACE = (
    _own(f"{ARGS}.learning_rate", number(above=0), "learning rate", affects=("optimizer.lr",)),
    _own(f"{ARGS}.per_device_train_batch_size", whole(1), "samples of a pass; 8", affects=("train.micro_batch_size",)),
    _own(f"{ARGS}.per_device_eval_batch_size", whole(1), "the same in validation; 8", affects=("evaluate.batch_size",)),
    _own(f"{ARGS}.gradient_accumulation_steps", whole(1), "passes of a step; 1", affects=("train.accumulation",)),
    _own(
        f"{ARGS}.optim",
        choice(
            by={
                **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
                "sgd": "SGD",
                "adagrad": "Adagrad",
                "rmsprop": "RMSprop",
            }
        ),
        "optimizer",
        affects=("optimizer.kind",),
    ),
    _own(f"{ARGS}.weight_decay", number(0), "decay of the matrices", affects=("optimizer.weight_decay",)),
    _own(
        f"{ARGS}.adam_beta1", number(0, below=1), "decay of the average of the gradient", affects=("optimizer.betas",)
    ),
    _own(f"{ARGS}.adam_beta2", number(0, below=1), "decay of the average of its square", affects=("optimizer.betas",)),
    _own(f"{ARGS}.adam_epsilon", number(above=0), "added to the root", affects=("optimizer.eps",)),
    _own(f"{ARGS}.lr_scheduler_type", text(), "schedule; linear", affects=("schedule.name",)),
    _own(f"{ARGS}.lr_scheduler_kwargs", mapping(), "its parameters", affects=("schedule.arguments",)),
    _own(f"{ARGS}.warmup_ratio", number(0, 1), "part of the run that warms up", affects=("schedule.warmup_steps",)),
    _own(f"{ARGS}.warmup_steps", whole(0), "steps that warm up", affects=("schedule.warmup_steps",)),
    _own(f"{ARGS}.max_grad_norm", number(0), "largest norm of the gradient; 1", affects=("train.clip_norm",)),
    _own(f"{ARGS}.bf16", flag(), "matrix products in bf16", affects=("train.precision",)),
    _own(f"{ARGS}.fp16", flag(), "matrix products in fp16", affects=("train.precision",)),
    _own(
        f"{ARGS}.eval_strategy",
        choice("no", "steps", "epoch"),
        "when to validate",
        aliases=(f"{ARGS}.evaluation_strategy",),
        affects=("evaluate.every",),
    ),
    _own(f"{ARGS}.save_strategy", choice("no", "steps", "epoch"), "when to save", affects=("checkpoint.every",)),
    _own(f"{ARGS}.save_total_limit", whole(1), "checkpoints to keep", affects=("checkpoint.keep",)),
    _own(f"{ARGS}.eval_on_start", flag(), "also validate before the first step", affects=("evaluate.at_start",)),
    _own(f"{ARGS}.label_smoothing_factor", number(0, below=1), "label smoothing", affects=("loss.label_smoothing",)),
    _own(f"{ARGS}.torch_compile", flag(), "compile the blocks", affects=("train.compile",)),
    _own(f"{ARGS}.use_cpu", flag(), "train on the CPU", affects=("train.device",)),
)

LIGHTNING = (
    _own(
        f"{ARGS}.train_micro_batch_size_per_gpu", whole(1), "samples of a pass; 1", affects=("train.micro_batch_size",)
    ),
    _own(f"{PL}.max_epochs", whole(-1), "passes over the data; -1: no end", affects=("train.epochs",)),
    _own(f"{PL}.max_steps", whole(-1), "steps; -1: no end", affects=("train.steps",)),
    _own(
        f"{PL}.precision",
        precision(),
        "numbers of the matrix products",
        affects=("train.precision",),
    ),
    _own(
        f"{PL}.log_every_n_steps",
        whole(1),
        "steps between logs of training metrics: progress lines and trackers; 50",
        affects=("train.log_every",),
    ),
    _own(f"{PL}.accumulate_grad_batches", whole(1), "passes of a step; 1", affects=("train.accumulation",)),
    _own(f"{PL}.gradient_clip_val", number(0), "largest norm of the gradient", affects=("train.clip_norm",)),
    _own(f"{PL}.gradient_clip_algorithm", choice("norm"), "what is clipped", affects=("train.clip_norm",)),
    _own(
        f"{PL}.val_check_interval",
        duration(),
        "passes between validations, or a fraction of an epoch",
        affects=("evaluate.every",),
    ),
    _own(f"{PL}.check_val_every_n_epoch", whole(1), "epochs between validations; 1", affects=("evaluate.every",)),
    _own(
        f"{PL}.limit_val_batches",
        passes(),
        "passes of a validation; 1.0: all",
        affects=("evaluate.samples",),
    ),
    _own(
        f"{PL}.accelerator",
        choice(by={"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}),
        "device",
        affects=("train.device",),
    ),
    *(
        _own(f"{PL}.{path}", value, help, no_effect=_STARTED)
        for path, value, help in (("devices", anything(), "devices"), ("num_nodes", whole(1), "machines"))
    ),
    _own(
        f"{PL}.num_sanity_val_steps",
        whole(-1),
        "a validation to try it",
        no_effect="every run is rehearsed before its first step",
    ),
    _own(
        f"{ARGS}.strategy.type",
        choice(*STRATEGIES),
        "how the model is spread over devices; any but auto leaves Lightning's loop for ours, which trains to the same "
        "weights",
        affects=("parallel.kind", "trainer.kind"),
    ),
    _own(f"{ARGS}.strategy.data_parallel_size", whole(0), "devices with different samples", no_effect=_STARTED),
    *(
        _own(f"{ARGS}.strategy.{path}", whole(0), help, pending=SPLIT_MODEL, noop_values=(0, 1))
        for path, help in (
            ("context_parallel_size", "devices with parts of a sequence"),
            ("tensor_parallel_size", "devices with parts of a layer"),
        )
    ),
    _own(
        f"{ARGS}.strategy.fsdp_cpu_offload",
        flag(),
        "with dctp: weights, gradients and optimizer state in the memory of the CPU",
        affects=("parallel.offload",),
    ),
    _own(
        f"{ARGS}.strategy.activation_checkpointing",
        flag(),
        "keep only what enters each block and compute the rest again in the backward pass",
        affects=("train.activation_checkpointing",),
    ),
    _own(f"{ARGS}.strategy.fsdp_compile", flag(), "with dctp: compile each block", affects=("train.compile",)),
    *(
        _own(f"{ARGS}.strategy.{path}", flag(), "of tensor parallelism", no_effect="no layer is split over devices")
        for path in ("tp_async", "tp_sequence_parallel", "tp_loss_parallel")
    ),
    _own(f"{MODULE}.optimizer.type", text(), "optimizer, as adamw", affects=("optimizer.kind",)),
    *optimizer_keys(f"{MODULE}.optimizer.params", documented=False),
    _own(f"{MODULE}.scheduler.type", text(), "schedule, as step", affects=("schedule.kind",)),
    _own(f"{MODULE}.scheduler.params", mapping(), "its parameters", affects=("schedule.arguments",)),
    _own(f"{MODULE}.scheduler.interval", choice("step"), "what the schedule counts", affects=("schedule.kind",)),
    _own(
        f"{MODULE}.scheduler.frequency",
        whole(1),
        "steps that it counts as one",
        pending="a schedule that counts several steps as one",
        noop_values=(1,),
    ),
    _own(f"{MODULE}.scheduler.name", text(), "name in logs", no_effect="the rate is logged as train/lr"),
)

FURTHER = (
    _own(
        ARGUMENTS,
        mapping(),
        "arguments of the other library's trainer that are handed on to it by name",
        affects=("trainer.arguments",),
    ),
)
