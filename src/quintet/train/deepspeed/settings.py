"""What DeepSpeed is given: the run file's ds_config, completed by what the run file and the processes say."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from quintet.config.deepspeed import AUTO
from quintet.config.parallel import DeepSpeedConfig, ParallelConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.config.section import number_in
from quintet.errors import UserError
from quintet.processes import world_size
from quintet.train.compute import Compute

# Under ZeRO an optimizer sees one long vector of parts, so each weight's step may only need what belongs to it.
ELEMENTWISE = ("AdamW", "Adam", "Adamax", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
_OUR_LOOP = ("optimizer", "scheduler")


def stage_of(parallel: DeepSpeedConfig) -> int:
    """The stage of ZeRO that a ds_config asks for; 0 when it says none."""
    block = parallel.config.get("zero_optimization")
    if isinstance(block, bool):
        return int(block)
    return int(number_in((block or {}).get("stage", 0)))


def stays_eager(parallel: ParallelConfig) -> bool:
    """Whether blocks cannot be compiled: the hooks of ZeRO 3 gather and drop weights around each module."""
    return isinstance(parallel, DeepSpeedConfig) and stage_of(parallel) == 3


def settings_of(config: RunConfig, shape: BatchShape, compute: Compute, parameters: int) -> dict[str, Any]:
    """The ds_config of this run, whole; ``shape`` is this process's part of a batch, ``parameters`` counts those that
    are trained. Raises UserError where the processes or the device contradict it."""
    parallel = config.parallel
    assert isinstance(parallel, DeepSpeedConfig)
    given = _plain(deepcopy(parallel.config))
    _check_batch(given, shape)
    _check_optimizer(config, stage_of(parallel))
    settings = {name: value for name, value in given.items() if name not in _OUR_LOOP and value != AUTO}
    settings |= {
        "train_batch_size": shape.samples * world_size(),
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": config.train.clip_norm or 0.0,
    }
    _fill_precision(settings, given, compute)
    # The optimizer is ours, of torch; its arithmetic is element by element, as is checked above.
    settings.setdefault("zero_allow_untested_optimizer", True)
    settings.setdefault("zero_force_ds_cpu_optimizer", False)
    if stage_of(parallel):
        zero = settings["zero_optimization"]
        zero = {"stage": stage_of(parallel)} if isinstance(zero, bool) else _without_auto(zero)
        # A bucket that holds all gradients is large enough; DeepSpeed's default takes 2 GB.
        zero.setdefault("reduce_bucket_size", min(500_000_000, max(parameters, 1)))
        settings["zero_optimization"] = zero
    return settings


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """Whether the optimizer's state is kept outside of the device."""
    zero = settings.get("zero_optimization") or {}
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    return bool(zero.get("cpu_offload")) or device not in (None, "none")


def wants_cpu_adam(config: RunConfig, settings: dict[str, Any]) -> bool:
    """Whether DeepSpeed's Adam for the host takes the steps: the ds_config names Adam and keeps its state there."""
    assert isinstance(config.parallel, DeepSpeedConfig)
    block = config.parallel.config.get("optimizer") or {}
    torch_adam = bool((block.get("params") or {}).get("torch_adam"))
    named = str(block.get("type", "")).lower() in ("adam", "adamw") and not torch_adam
    return offloads_optimizer(settings) and config.optimizer.kind == "adamw" and named


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return number_in(value)


def _without_auto(value: Any) -> Any:
    """What a later ``auto`` of DeepSpeed's own settings means: its default."""
    if not isinstance(value, dict):
        return value
    return {name: _without_auto(one) for name, one in value.items() if one != AUTO}


def _check_batch(given: dict[str, Any], shape: BatchShape) -> None:
    own = {
        "train_micro_batch_size_per_gpu": (shape.micro_batch_size, "train.micro_batch_size"),
        "gradient_accumulation_steps": (shape.accumulation, "train.batch_size"),
    }
    for name, (value, key) in own.items():
        theirs = given.get(name, AUTO)
        if theirs not in (AUTO, value):
            raise UserError(
                f"parallel.config.{name}: is {theirs}, and by {key} a step over {world_size()} processes has "
                f"{shape.accumulation} passes of {shape.micro_batch_size} samples in each; make them agree or set it "
                "to auto"
            )


def _check_optimizer(config: RunConfig, stage: int) -> None:
    name = "AdamW" if config.optimizer.kind == "adamw" else config.optimizer.name
    if stage and name not in ELEMENTWISE:
        raise UserError(
            f"optimizer.name: {name} needs whole matrices, which ZeRO {stage} cuts into parts; take one of "
            f"{', '.join(ELEMENTWISE)}, or parallel.config.zero_optimization.stage: 0"
        )


def _fill_precision(settings: dict[str, Any], given: dict[str, Any], compute: Compute) -> None:
    for kind in ("fp16", "bf16"):
        block = settings.get(kind)
        block = _without_auto(block) if isinstance(block, dict) else {}
        asked = (given.get(kind) or {}).get("enabled")
        # fp16 needs its loss scaled, which DeepSpeed does; in bf16 weights stay in fp32 unless it is asked for.
        enabled = compute.precision == kind and (asked in (True, AUTO) or kind == "fp16")
        if asked is False and compute.precision == kind:
            raise UserError(
                f"parallel.config.{kind}.enabled: is false, and train.precision: auto is {kind} here; set "
                "train.precision to fp32"
            )
        settings[kind] = {**block, "enabled": enabled}
    if settings["bf16"]["enabled"]:
        settings["bf16"].setdefault("check_grad_overflow", True)
