"""Paths of PhyAGI's sections, and what its names of activations, optimizers, schedules and strategies mean."""

from typing import Any

ARCHITECTURE = "model.architecture"
MIXER = f"{ARCHITECTURE}.mixer"
PRETRAINED = "model.pretrained_model_name_or_path"
ARGS = "training_args"
DS = f"{ARGS}.ds_config"
PL = f"{ARGS}.trainer"
MODULE = f"{ARGS}.lightning_module"
ARGUMENTS = f"{ARGS}.arguments"
"""Arguments of another library's trainer that the schema does not have; `normalize` moves them here."""

MIXFORMER = "mixformer-sequential"
ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_approx", "gelu_pytorch_tanh"), "gelu_tanh"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **{name: name for name in ("relu", "relu2", "leaky_relu", "silu")},
    **{"swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "linear": "none"},
}
NORMS = {"torch": "layer", "low_precision": "layer", "rms": "rms", "flash_rms": "rms"}
_NUMBERS = {"bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "half", "float16"), "fp32": ("fp32", "float", "float32")}
DTYPES = {
    **{f"{prefix}{name}": ours for prefix in ("", "torch.") for ours, names in _NUMBERS.items() for name in names},
    "auto": "auto",
}
PRECISIONS = {
    **dict.fromkeys(("bf16-mixed", "bf16", "bf16-true"), "bf16"),
    **dict.fromkeys(("16-mixed", "16", "16-true"), "fp16"),
    **dict.fromkeys(("32", "32-true"), "fp32"),
}
"""Lightning's names of precisions."""

HF_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **{"sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"},
}
"""Names of the transformers library: "adamw", or a class of torch.optim."""
TORCH_OPTIMIZERS = {name.lower(): name for name in ("Adadelta", "Adagrad", "Adamax", "ASGD", "RMSprop", "Rprop", "SGD")}
"""PhyAGI's names, for Lightning, of classes of torch.optim."""
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
"""Defaults of DeepSpeed's AdamW."""

DS_SCHEDULES = ("WarmupDecayLR", "WarmupLR", "WarmupCosineLR", "OneCycle", "LRRangeTest", "WarmupDecayCooldownLR")
OWN_SCHEDULES = {
    "warmup": "WarmupLR",
    "warmup_decay": "WarmupDecayLR",
    "warmup_decay_cooldown": "WarmupDecayCooldownLR",
}
"""PhyAGI's names, for Lightning, of DeepSpeed's schedules."""
TORCH_SCHEDULES = {
    "constant": "ConstantLR",
    "cosine_annealing": "CosineAnnealingLR",
    "cosine_annealing_with_warm_restart": "CosineAnnealingWarmRestarts",
    "cyclic": "CyclicLR",
    "exponential": "ExponentialLR",
    "linear": "LinearLR",
    "multi_step": "MultiStepLR",
    "one_cycle": "OneCycleLR",
    "step": "StepLR",
}
"""PhyAGI's names, for Lightning, of classes of torch.optim.lr_scheduler."""

DEFAULT_ADAMW = {"kind": "adamw", "lr": 1.8e-3, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.0, "decay": "all"}
_WARMUP = {"warmup_min_lr": 0.0, "warmup_max_lr": 1.8e-3, "warmup_type": "linear"}
DEFAULT_SCHEDULE = {"kind": "deepspeed", "name": "WarmupDecayLR", "arguments": _WARMUP}
"""The native sections `optimizer` and `schedule` of PhyAGI's own ds_config, which a file without one gets."""
DEFAULT_BATCH, DEFAULT_MICRO_BATCH = 1024, 4
"""Samples of a step and of a pass in that ds_config."""
ZERO_ONLY = ("fp16", "bf16", "data_types", "zero_allow_untested_optimizer")
"""Settings of a ds_config that, beside zero_optimization, go to DeepSpeed as they are."""


def _zero(stage: int, *, offload: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})}
    return {"kind": "deepspeed", "config": {"zero_optimization": settings}}


STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "ddp": {"kind": "ddp"},
    "dctp": {"kind": "fsdp"},
    "fsdp": {"kind": "fsdp"},
    "deepspeed": _zero(2),
    **{f"deepspeed_stage_{stage}": _zero(stage) for stage in (1, 2, 3)},
    **{f"deepspeed_stage_{stage}_offload": _zero(stage, offload=True) for stage in (1, 2, 3)},
}
"""The native section `parallel` for each strategy of Lightning and of PhyAGI, whose dctp shards as PyTorch's FSDP2."""
