"""DeepSpeed's ds_config within a run file: what both say must agree, and what one of them says holds for both.

The names and defaults are those of DeepSpeed's "Configuration JSON".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quintet.config.section import config_error, number_in
from quintet.errors import nearest

if TYPE_CHECKING:
    from quintet.config.schema import RunConfig

AUTO = "auto"
_HERE = "parallel.config"
# Which key of the run file says the same.
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
# What the run file has keys of its own for, or what would change what is computed.
_REFUSED = {
    "activation_checkpointing": "is train.activation_checkpointing",
    "checkpoint": "is the section checkpoint; checkpoints have one form for all engines",
    "tensorboard": "is the section track",
    "wandb": "is the section track",
    "comet": "is the section track",
    "csv_monitor": "is the section track",
    "data_efficiency": "changes what is read; the section data says that",
    "curriculum_learning": "changes what is read; the section data says that",
    "dataloader_drop_last": "changes what is read; the section data says that",
    "progressive_layer_drop": "is not done here",
    "compression_training": "is not done here",
    "quantize_training": "is not done here",
    "sparse_attention": "is not done here; see model.attention",
    "sparse_gradients": "is not done here",
    "elasticity": "is not done here; any number of processes continues a run",
    "autotuning": "is not done here",
    "eigenvalue": "is not done here",
    "hybrid_engine": "is not done here",
    "pipeline": "is not done here",
    "tensor_parallel": "is not done here",
    "sequence_parallel_size": "is not done here",
    "expert_parallel": "is not done here",
    "compile": "is train.compile",
    "amp": "needs NVIDIA's apex; take bf16 or fp16",
    "gradient_allreduce_op": "is always the mean, on which the loss of a batch rests",
    "managed_gradient_accumulation": "is always true here",
    "seed": "is the key seed",
}
_ADAM = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
_SWITCHES = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")
# DeepSpeed's own kernels: none is in torch.optim.
_OWN_OPTIMIZERS = ("OneBitAdam", "ZeroOneAdam", "OneBitLamb", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD")


def given_by_deepspeed(values: Any) -> Any:
    """``values``, a run file as it was read, with what its ds_config says and its own keys leave out."""
    ds = _ds_config(values)
    if not ds:
        return values
    values = dict(values)
    _fill(values, "train", _training(ds))
    if isinstance(ds.get("optimizer"), dict):
        own, theirs = values.get("optimizer"), _optimizer(ds["optimizer"], fresh="optimizer" not in values)
        # Two kinds are a contradiction, which is told better than keys that one of them lacks.
        if not isinstance(own, dict) or own.get("kind", "adamw") == theirs.get("kind", "adamw"):
            _fill(values, "optimizer", theirs)
    scheduler = ds.get("scheduler")
    if isinstance(scheduler, dict) and isinstance(scheduler.get("type"), str) and "schedule" not in values:
        arguments = _without_auto(scheduler.get("params"))
        rate = values["optimizer"].get("lr") if isinstance(values.get("optimizer"), dict) else None
        if (scheduler.get("params") or {}).get("warmup_max_lr") == AUTO and rate is not None:
            arguments["warmup_max_lr"] = number_in(rate)
        values["schedule"] = {"kind": "deepspeed", "name": scheduler["type"], "arguments": arguments}
    return values


def refuse_deepspeed_contradictions(config: RunConfig) -> None:
    """Raise an error that names both keys where ``config`` and its ds_config differ, or for a key that is not used."""
    ds: dict[str, Any] = getattr(config.parallel, "config", {})
    for name in ds:
        _check_name(name)
    batch = config.batch
    now = {
        "train_batch_size": batch.samples,
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size or batch.micro_batch_size,
        "gradient_clipping": config.train.clip_norm or 0.0,
    }
    for name, value in now.items():
        # A batch of fewer passes than one micro-batch has samples is checked when the processes are known.
        if name == "train_micro_batch_size_per_gpu" and config.train.micro_batch_size is None:
            continue
        if name == "train_batch_size" and config.train.batch_size_per_device and not config.train.batch_devices:
            continue  # nor is the batch
        _must_equal(ds.get(name, AUTO), name, value, _SAME[name])
    _check_precision(config, ds)
    _check_optimizer(config, ds)
    _check_scheduler(config, ds)


def _ds_config(values: Any) -> dict[str, Any]:
    parallel = values.get("parallel") if isinstance(values, dict) else None
    if not isinstance(parallel, dict) or parallel.get("kind") != "deepspeed":
        return {}
    found = parallel.get("config")
    return found if isinstance(found, dict) else {}


def _fill(values: dict[str, Any], section: str, found: dict[str, Any]) -> None:
    own = values.get(section, {})
    if found and isinstance(own, dict):
        if any(own.get(name) is not None for name in ("batch_size", "batch_tokens", "accumulation")):
            found.pop("batch_size_per_device", None)
        values[section] = found | own


def _training(ds: dict[str, Any]) -> dict[str, Any]:
    found = {
        key.partition(".")[2]: number_in(ds[name])
        for name, key in _SAME.items()
        if ds.get(name, AUTO) not in (AUTO, None)
    }
    micro, passes = found.get("micro_batch_size"), number_in(ds.get("gradient_accumulation_steps", AUTO))
    if "batch_size" not in found and isinstance(micro, int) and isinstance(passes, int):
        # train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × devices
        found["batch_size_per_device"] = micro * passes
    if found.get("clip_norm") == 0:
        found["clip_norm"] = None
    enabled = {kind: _enabled(ds, kind) for kind in ("fp16", "bf16")}
    chosen = [kind for kind, value in enabled.items() if value is True]
    if chosen:
        found["precision"] = chosen[0]
    elif False in enabled.values() and "torch_autocast" not in ds:
        found["precision"] = "fp32"
    return found


def _enabled(ds: dict[str, Any], kind: str) -> Any:
    block = ds.get(kind)
    return block.get("enabled", AUTO) if isinstance(block, dict) else AUTO


def _optimizer(block: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """The run file's optimizer section for that of a ds_config; with ``fresh`` DeepSpeed's defaults too, among them
    that everything decays."""
    params = _without_auto(block.get("params"))
    if not _is_adamw(block):
        ours = {name: params.pop(name) for name in ("lr", "weight_decay") if name in params}
        found = {"kind": "torch", "name": block.get("type"), **ours}
        if params := {name: value for name, value in params.items() if name not in _SWITCHES}:
            found["arguments"] = params
        return found | ({"decay": "all"} if fresh else {})
    known = {name: value for name, value in params.items() if name in _ADAM}
    return ({"kind": "adamw", "decay": "all", **_ADAM} if fresh else {}) | known


def _is_adamw(block: dict[str, Any]) -> bool:
    """DeepSpeed's Adam decays as AdamW does unless ``adam_w_mode`` is false."""
    kind, params = str(block.get("type", "")).lower(), block.get("params") or {}
    return kind == "adamw" or (kind == "adam" and params.get("adam_w_mode", True) is not False)


def _without_auto(params: Any) -> dict[str, Any]:
    if not isinstance(params, dict):
        return {}
    return {name: _plain(value) for name, value in params.items() if value != AUTO}


def _plain(value: Any) -> Any:
    return [number_in(one) for one in value] if isinstance(value, list | tuple) else number_in(value)


def _check_name(name: str) -> None:
    if name in _REFUSED:
        raise config_error(f"{_HERE}.{name}", f"{_REFUSED[name]}; leave it out")
    if name not in _PASSED:
        meant = nearest(name, _PASSED)
        raise config_error(
            f"{_HERE}.{name}", "is no key of DeepSpeed's" + (f"; did you mean {meant}?" if meant else "")
        )


def _must_equal(theirs: Any, name: str, ours: Any, key: str) -> None:
    theirs, ours = _plain(theirs), _plain(ours)
    if theirs not in (AUTO, None) and theirs != ours:
        said = "null" if ours is None else ours
        raise config_error(f"{_HERE}.{name}", f"is {theirs}, and {key} is {said}; make them equal or set one to auto")


def _check_precision(config: RunConfig, ds: dict[str, Any]) -> None:
    ours = config.train.precision
    if _enabled(ds, "fp16") is True and _enabled(ds, "bf16") is True:
        raise config_error(f"{_HERE}.fp16.enabled", f"is true, and {_HERE}.bf16.enabled is true; take one of them")
    for kind in ("fp16", "bf16"):
        enabled = _enabled(ds, kind)
        if (enabled is True and ours != kind) or (enabled is False and ours == kind):
            said = str(enabled).lower()
            raise config_error(f"{_HERE}.{kind}.enabled", f"is {said}, and train.precision is {ours}; make them agree")
    block = ds.get("torch_autocast")
    if isinstance(block, dict) and block.get("enabled"):
        raise config_error(
            f"{_HERE}.torch_autocast", "is what train.precision: bf16 does by itself; leave it out and say that"
        )


def _check_optimizer(config: RunConfig, ds: dict[str, Any]) -> None:
    block = ds.get("optimizer")
    if not isinstance(block, dict):
        return
    name, ours = block.get("type"), config.optimizer
    if name in _OWN_OPTIMIZERS:
        raise config_error(f"{_HERE}.optimizer.type", f"{name} is not done here; take AdamW, or one of torch.optim")
    own = "AdamW" if ours.kind == "adamw" else ours.name
    same = ours.kind == "adamw" if _is_adamw(block) else name == own
    if not same:
        raise config_error(
            f"{_HERE}.optimizer.type", f"is {name}, and the section optimizer says {own}; make them agree"
        )
    for key, value in _without_auto(block.get("params")).items():
        if key in _SWITCHES or (key == "bias_correction" and value is True):
            continue
        given = getattr(ours, "arguments", {})
        if hasattr(ours, key):
            _must_equal(value, f"optimizer.params.{key}", getattr(ours, key), f"optimizer.{key}")
        elif key in given:
            _must_equal(value, f"optimizer.params.{key}", given[key], f"optimizer.arguments.{key}")
        else:
            raise config_error(f"{_HERE}.optimizer.params.{key}", f"is not said by the section optimizer for {own}")


def _check_scheduler(config: RunConfig, ds: dict[str, Any]) -> None:
    block = ds.get("scheduler")
    if not isinstance(block, dict):
        return
    schedule = config.schedule
    if schedule.kind != "deepspeed" or schedule.name != block.get("type"):
        said = schedule.name if schedule.kind == "deepspeed" else schedule.kind
        raise config_error(
            f"{_HERE}.scheduler.type", f"is {block.get('type')}, and the section schedule says {said}; make them agree"
        )
    for key, value in _without_auto(block.get("params")).items():
        _must_equal(value, f"scheduler.params.{key}", schedule.arguments.get(key), f"schedule.arguments.{key}")
