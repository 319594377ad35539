"""DeepSpeed's ds_config in `parallel.config`: it sets keys that the run file lacks, and must agree with the others.

The names and defaults are those of DeepSpeed's "Configuration JSON".
"""

from typing import Any

from quintet.config.data import DataConfig
from quintet.config.keypath import is_mapping, is_sequence
from quintet.config.optimizer import OptimizerConfig, name_of
from quintet.config.parallel import DeepSpeedConfig, ParallelConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, ScheduleConfig
from quintet.config.section import ConfigErrors, config_error, number_in
from quintet.config.train import TrainConfig
from quintet.errors import did_you_mean, nearest

AUTO = "auto"
_HERE = "parallel.config"
# The key of the run file that sets the same.
_SAME = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_clipping": "train.clip_norm",
}
_PASSED = (
    *_SAME,
    *("gradient_accumulation_steps", "optimizer", "scheduler", "fp16", "bf16", "torch_autocast", "data_types"),
    *("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio"),
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "disable_allgather"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "comms_logger"),
    *("flops_profiler", "use_node_local_storage", "disable_python_gc"),
)
# Settings for which the run file has keys, or that would change the computation.
_REFUSED = {
    "activation_checkpointing": "is set by train.activation_checkpointing",
    "checkpoint": "is set by the section checkpoint, because checkpoints have one format for all engines",
    "tensorboard": "is set by the section track",
    "wandb": "is set by the section track",
    "comet": "is set by the section track",
    "csv_monitor": "is set by the section track",
    "data_efficiency": "changes the data; the section data does so",
    "curriculum_learning": "changes the data; the section data does so",
    "dataloader_drop_last": "changes the data; the section data does so",
    "progressive_layer_drop": "is not supported",
    "compression_training": "is not supported",
    "quantize_training": "is not supported",
    "sparse_attention": "is not supported; see model.attention",
    "sparse_gradients": "is not supported",
    "elasticity": "is not supported; any number of processes continues a run",
    "autotuning": "is not supported",
    "eigenvalue": "is not supported",
    "hybrid_engine": "is not supported",
    "pipeline": "is not supported",
    "tensor_parallel": "is not supported",
    "sequence_parallel_size": "is not supported",
    "expert_parallel": "is not supported",
    "compile": "is set by train.compile",
    "amp": "needs NVIDIA's apex; take bf16 or fp16",
    "gradient_allreduce_op": "is always the mean, which the loss of a batch requires",
    "managed_gradient_accumulation": "is always true here",
    "seed": "is set by the key seed",
}
_ADAM = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
_SWITCHES = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")
# The defaults of settings that AdamW of the section `optimizer` lacks.
_WITHOUT_EFFECT = (("bias_correction", True), ("amsgrad", False))
# DeepSpeed's own kernels: none is in torch.optim.
_OWN_OPTIMIZERS = ("OneBitAdam", "ZeroOneAdam", "OneBitLamb", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD")


def given_by_deepspeed(values: Any) -> Any:
    """Return ``values``, a run file as it was read, with the values of its ds_config for keys that it lacks."""
    ds = _ds_config(values)
    if not ds:
        return values
    values = dict(values)
    _fill(values, "train", _training(ds))
    if is_mapping(ds.get("optimizer")):
        own, theirs = values.get("optimizer"), _optimizer(ds["optimizer"], fresh="optimizer" not in values)
        # If the kinds differ, that is reported, and not the keys that one of them lacks.
        if not is_mapping(own) or own.get("kind", "adamw") == theirs.get("kind", "adamw"):
            _fill(values, "optimizer", theirs)
    scheduler = ds.get("scheduler")
    if is_mapping(scheduler) and isinstance(scheduler.get("type"), str) and "schedule" not in values:
        arguments = _without_auto(scheduler.get("params"))
        rate = values["optimizer"].get("lr") if is_mapping(values.get("optimizer")) else None
        params: dict[str, Any] = scheduler.get("params") or {}
        if params.get("warmup_max_lr") == AUTO and rate is not None:
            arguments["warmup_max_lr"] = number_in(rate)
        values["schedule"] = {"kind": "deepspeed", "name": scheduler["type"], "arguments": arguments}
    return values


def batch_errors(parallel: ParallelConfig, train: TrainConfig, data: DataConfig) -> ConfigErrors:
    """Yield an error for each batch size, and for the clipping, that differs between a ds_config and ``train``."""
    ds = _given(parallel)
    yield from _unequal(ds, "gradient_clipping", train.clip_norm or 0.0, _SAME["gradient_clipping"])
    batch = train.batch(data.sequence_length)
    if not train.batch_size_per_device or train.batch_devices:  # otherwise it is checked when the processes are known
        yield from _unequal(ds, "train_batch_size", batch.samples, _SAME["train_batch_size"])
    if train.micro_batch_size is not None:  # otherwise it follows from the other keys
        name = "train_micro_batch_size_per_gpu"
        yield from _unequal(ds, name, train.micro_batch_size, _SAME[name])


def name_errors(parallel: ParallelConfig) -> ConfigErrors:
    """Yield an error for each key of a ds_config that is refused, or that DeepSpeed does not have."""
    for name in _given(parallel):
        if name in _REFUSED:
            yield config_error(f"{_HERE}.{name}", f"{_REFUSED[name]}; remove it")
        elif name not in _PASSED:
            hint = did_you_mean(nearest(name, _PASSED), quoted=False)
            yield config_error(f"{_HERE}.{name}", f"is not a key of DeepSpeed{hint}")


def precision_errors(parallel: ParallelConfig, train: TrainConfig) -> ConfigErrors:
    """Yield an error for each precision of a ds_config that differs from ``train.precision``."""
    ds, ours = _given(parallel), train.precision
    both = _enabled(ds, "fp16") is True and _enabled(ds, "bf16") is True
    if both:
        yield config_error(f"{_HERE}.fp16.enabled", f"is true, and {_HERE}.bf16.enabled is true; set one of them")
    for kind in () if both else ("fp16", "bf16"):
        enabled = _enabled(ds, kind)
        if (enabled is True and ours != kind) or (enabled is False and ours == kind):
            value = str(enabled).lower()
            yield config_error(f"{_HERE}.{kind}.enabled", f"is {value}, and train.precision is {ours}; make them agree")
    block = ds.get("torch_autocast")
    if is_mapping(block) and block.get("enabled"):
        yield config_error(f"{_HERE}.torch_autocast", "does what train.precision: bf16 does; remove it and set that")


def optimizer_errors(parallel: ParallelConfig, optimizer: OptimizerConfig) -> ConfigErrors:
    """Yield an error for each key of a ds_config's optimizer that differs from the section ``optimizer``."""
    ds = _given(parallel)
    block = ds.get("optimizer")
    if not is_mapping(block):
        return
    name = block.get("type")
    if name in _OWN_OPTIMIZERS:
        yield config_error(
            f"{_HERE}.optimizer.type", f"{name} is not supported; set AdamW, or an optimizer of torch.optim"
        )
        return
    own = name_of(optimizer)
    if not (optimizer.kind == "adamw" if _is_adamw(block) else name == own):
        yield config_error(
            f"{_HERE}.optimizer.type", f"is {name}, and the section optimizer has {own}; make them agree"
        )
        return
    params, arguments = _without_auto(block.get("params")), getattr(optimizer, "arguments", {})
    for key, value in params.items():
        if key in _SWITCHES:
            continue
        path = f"optimizer.params.{key}"
        if hasattr(optimizer, key):
            yield from _unequal({path: value}, path, getattr(optimizer, key), f"optimizer.{key}")
        elif key in arguments:
            yield from _unequal({path: value}, path, arguments[key], f"optimizer.arguments.{key}")
        elif (key, value) not in _WITHOUT_EFFECT:
            yield config_error(f"{_HERE}.{path}", f"is not a key of the section optimizer for {own}; remove it")


def schedule_errors(parallel: ParallelConfig, schedule: ScheduleConfig) -> ConfigErrors:
    """Yield an error for each key of a ds_config's scheduler that differs from the section ``schedule``."""
    block = _given(parallel).get("scheduler")
    if not is_mapping(block):
        return
    if not isinstance(schedule, DeepSpeedScheduleConfig) or schedule.name != block.get("type"):
        name = schedule.name if isinstance(schedule, DeepSpeedScheduleConfig) else schedule.kind
        yield config_error(
            f"{_HERE}.scheduler.type", f"is {block.get('type')}, and the section schedule has {name}; make them agree"
        )
        return
    for key, value in _without_auto(block.get("params")).items():
        path = f"scheduler.params.{key}"
        yield from _unequal({path: value}, path, schedule.arguments.get(key), f"schedule.arguments.{key}")


def _given(parallel: ParallelConfig) -> dict[str, Any]:
    return parallel.config if isinstance(parallel, DeepSpeedConfig) else {}


def _unequal(ds: dict[str, Any], name: str, ours: Any, key: str) -> ConfigErrors:
    """Yield an error if ``name`` of ``ds`` is given and differs from ``ours``, the value of the run file's ``key``."""
    theirs, ours = _plain(ds.get(name, AUTO)), _plain(ours)
    if theirs not in (AUTO, None) and theirs != ours:
        value = "null" if ours is None else ours
        yield config_error(f"{_HERE}.{name}", f"is {theirs}, and {key} is {value}; make them equal or set one to auto")


def _ds_config(values: Any) -> dict[str, Any]:
    parallel = values.get("parallel") if is_mapping(values) else None
    if not is_mapping(parallel) or parallel.get("kind") != "deepspeed":
        return {}
    config = parallel.get("config")
    return config if is_mapping(config) else {}


def _fill(values: dict[str, Any], section: str, theirs: dict[str, Any]) -> None:
    own = values.get(section, {})
    if theirs and is_mapping(own):
        if any(own.get(name) is not None for name in ("batch_size", "batch_tokens", "accumulation")):
            theirs.pop("batch_size_per_device", None)
        values[section] = theirs | own


def _training(ds: dict[str, Any]) -> dict[str, Any]:
    section = {
        key.partition(".")[2]: number_in(ds[name])
        for name, key in _SAME.items()
        if ds.get(name, AUTO) not in (AUTO, None)
    }
    micro, passes = section.get("micro_batch_size"), number_in(ds.get("gradient_accumulation_steps", AUTO))
    if "batch_size" not in section and isinstance(micro, int) and isinstance(passes, int):
        # train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × devices
        section["batch_size_per_device"] = micro * passes
    if section.get("clip_norm") == 0:
        section["clip_norm"] = None
    enabled = {kind: _enabled(ds, kind) for kind in ("fp16", "bf16")}
    chosen = [kind for kind, value in enabled.items() if value is True]
    if chosen:
        section["precision"] = chosen[0]
    elif False in enabled.values() and "torch_autocast" not in ds:
        section["precision"] = "fp32"
    return section


def _enabled(ds: dict[str, Any], kind: str) -> Any:
    block = ds.get(kind)
    return block.get("enabled", AUTO) if is_mapping(block) else AUTO


def _optimizer(block: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """Return the section `optimizer` for the optimizer of a ds_config; if ``fresh``, with DeepSpeed's defaults, such as
    decay of all parameters."""
    params = _without_auto(block.get("params"))
    if not _is_adamw(block):
        ours = {name: params.pop(name) for name in ("lr", "weight_decay") if name in params}
        section = {"kind": "torch", "name": block.get("type"), **ours}
        if params := {name: value for name, value in params.items() if name not in _SWITCHES}:
            section["arguments"] = params
        return section | ({"decay": "all"} if fresh else {})
    known = {name: value for name, value in params.items() if name in _ADAM}
    return ({"kind": "adamw", "decay": "all", **_ADAM} if fresh else {}) | known


def _is_adamw(block: dict[str, Any]) -> bool:
    """True for AdamW, and for DeepSpeed's Adam, which is AdamW unless ``adam_w_mode`` is false."""
    kind = str(block.get("type", "")).lower()
    params: dict[str, Any] = block.get("params") or {}
    return kind == "adamw" or (kind == "adam" and params.get("adam_w_mode", True) is not False)


def _without_auto(params: Any) -> dict[str, Any]:
    if not is_mapping(params):
        return {}
    return {name: _plain(value) for name, value in params.items() if value != AUTO}


def _plain(value: Any) -> Any:
    return [number_in(element) for element in value] if is_sequence(value) else number_in(value)
