"""The schedules of PyTorch, of the transformers library and of DeepSpeed."""

import inspect
import json
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from quintet.config.optimizer import OptimizerConfig, TorchOptimizerConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.train import steps_of
from quintet.errors import UserError
from quintet.libraries import check_arguments, check_name, refusals_of, require
from quintet.train.library_optimizers import has_momentum

_SET_IN_TORCH = {"optimizer": "", "last_epoch": ""}
_ANY_MOMENTUM = 0.9  # of the optimizer that the schedule is stepped with; the schedule replaces it
_WARMUP_START = 0.01  # fraction of the rate
# These need functions or other schedules, which a run file cannot have, or a metric.
_NOT_FOR_A_FILE = (
    "LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "SequentialLR",
    "ChainedScheduler",
    "ReduceLROnPlateau",
)


def torch_rate(config: TorchScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Return the rate of ``step``, counted from 1, if the class is stepped once after each step of the run."""
    return _steps_of_class(config, highest, steps)[step - 1][0]


def torch_momentum(config: TorchScheduleConfig, highest: float, step: int, steps: int) -> float | None:
    """Return the momentum, or first beta, that CyclicLR or OneCycleLR sets for ``step``; None under other classes."""
    return _steps_of_class(config, highest, steps)[step - 1][1] if cycles_momentum(config) else None


def cycles_momentum(config: TorchScheduleConfig) -> bool:
    """Return True if the class changes the momentum: CyclicLR and OneCycleLR, unless `cycle_momentum` is false."""
    parameter = inspect.signature(_torch_classes()[config.name]).parameters.get("cycle_momentum")
    return parameter is not None and bool(config.arguments.get("cycle_momentum", parameter.default))


def check_torch_schedule(config: TorchScheduleConfig, optimizer: OptimizerConfig | None = None) -> None:
    """Raise UserError if no run can use the schedule, or it does not take the arguments.

    Also if it cycles the momentum and the ``optimizer`` has none.
    """
    if config.name == "ReduceLROnPlateau":
        raise UserError("schedule.name: ReduceLROnPlateau follows the validation loss; it is schedule.kind: plateau")
    known = _torch_classes()
    check_name("schedule.name", config.name, list(known), "torch.optim.lr_scheduler")
    check_arguments("schedule.arguments", config.name, known[config.name], config.arguments, _SET_IN_TORCH)
    if isinstance(optimizer, TorchOptimizerConfig) and cycles_momentum(config) and not has_momentum(optimizer):
        raise UserError(
            f"schedule.arguments.cycle_momentum: {config.name} cycles the momentum unless this is false, and "
            f"{optimizer.name} has none; set it to false"
        )


def _torch_classes() -> dict[str, type]:
    return {
        name: found
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found)
        and issubclass(found, lr_scheduler.LRScheduler)
        and not name.startswith("_")
        and name not in _NOT_FOR_A_FILE
    }


def _steps_of_class(config: TorchScheduleConfig, highest: float, steps: int) -> list[tuple[float, float]]:
    warmup = steps_of(config.warmup_steps, steps)
    return _torch_table(config.name, json.dumps(config.arguments, sort_keys=True), warmup, highest, steps)


@lru_cache(maxsize=8)
def _torch_table(name: str, arguments: str, warmup: int, highest: float, steps: int) -> list[tuple[float, float]]:
    """Return rate and momentum of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest, momentum=_ANY_MOMENTUM)
    chosen: Any = _torch_classes()[name]
    given = json.loads(arguments)
    accepted = inspect.signature(chosen).parameters
    if "total_steps" in accepted and not {"total_steps", "epochs"} & set(given):
        given["total_steps"] = max(steps - warmup, 1)
    table: list[tuple[float, float]] = []
    with refusals_of("schedule.arguments", name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the optimizer, which is never stepped
        schedule = chosen(optimizer, **given)
        if warmup:
            before = LinearLR(optimizer, start_factor=_WARMUP_START, end_factor=1.0, total_iters=warmup)
            schedule = SequentialLR(optimizer, [before, schedule], milestones=[warmup])
        for step in range(steps):
            group = optimizer.param_groups[0]
            table.append((float(group["lr"]), float(group["momentum"])))
            if step < steps - 1:
                schedule.step()
    return table


_SET_IN_TRANSFORMERS = {
    "optimizer": "",
    "last_epoch": "",
    "num_warmup_steps": "is schedule.warmup_steps",
    "num_training_steps": "is the number of steps of the run",
}
# These depend on a metric.
_NEED_METRIC = ("reduce_lr_on_plateau", "greedy")


def transformers_rate(config: TransformersScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Return the rate of ``step``, counted from 1: ``highest`` times the library's factor, which counts from 0."""
    warmup = steps_of(config.warmup_steps, steps)
    factor = _transformers_factor(config.name, json.dumps(config.arguments, sort_keys=True), warmup, highest, steps)
    with refusals_of("schedule.arguments", config.name):
        return highest * factor(step - 1)


def check_transformers_schedule(config: TransformersScheduleConfig) -> None:
    """Raise UserError if no run can use the schedule, or it does not take the arguments."""
    functions = _transformers_functions()
    if config.name == "reduce_lr_on_plateau":
        raise UserError("schedule.name: reduce_lr_on_plateau follows the validation loss; it is schedule.kind: plateau")
    known = [name for name in functions if name not in _NEED_METRIC]
    check_name("schedule.name", config.name, known, "transformers.SchedulerType")
    if config.name == "constant" and config.warmup_steps:
        raise UserError("schedule.warmup_steps: constant has no warm-up; constant_with_warmup has")
    check_arguments("schedule.arguments", config.name, functions[config.name], config.arguments, _SET_IN_TRANSFORMERS)
    transformers_rate(config, 1.0, 1, 1000)  # the library itself reports missing arguments


def _transformers_functions() -> dict[str, Callable[..., Any]]:
    library: Any = require("transformers.optimization", "hf", "schedule.kind: transformers")
    return {kind.value: function for kind, function in library.TYPE_TO_SCHEDULER_FUNCTION.items()}


@lru_cache(maxsize=8)
def _transformers_factor(name: str, arguments: str, warmup: int, highest: float, steps: int) -> Callable[[int], float]:
    """Return the function of the step that the rate is multiplied by. Some schedules read the optimizer's rate."""
    library: Any = require("transformers", "hf", "schedule.kind: transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest)
    with refusals_of("schedule.arguments", name):
        schedule = library.get_scheduler(name, optimizer, warmup, steps, json.loads(arguments))
    assert isinstance(schedule, lr_scheduler.LambdaLR)
    return schedule.lr_lambdas[0]


_NOT_CYCLED = "the momentum is not cycled; leave it out"
_SET_IN_DEEPSPEED = {
    "highest": "",
    "steps": "",
    "s": "",
    "cycle_min_mom": _NOT_CYCLED,
    "cycle_max_mom": _NOT_CYCLED,
    "decay_mom_rate": _NOT_CYCLED,
    "last_batch_iteration": "a continued run knows its step",
}
_WITHOUT_EFFECT = ("cycle_momentum",)  # only false is accepted, which is what happens


def deepspeed_rate(config: DeepSpeedScheduleConfig, highest: float, step: int, steps: int) -> float:
    """Return the rate of ``step``, counted from 1, of a run of ``steps``.

    ``highest`` is used by WarmupCosineLR, and by WarmupLR without `warmup_max_lr`.
    """
    arguments = {name: value for name, value in config.arguments.items() if name not in _WITHOUT_EFFECT}
    with refusals_of("schedule.arguments", config.name):
        return float(_DEEPSPEED[config.name](step - 2, highest, steps, **arguments))


def check_deepspeed_schedule(config: DeepSpeedScheduleConfig) -> None:
    """Raise UserError if the schedule does not take the arguments."""
    given = dict(config.arguments)
    if config.name == "OneCycle":
        if given.get("cycle_momentum", True) is not False:
            raise UserError(
                "schedule.arguments.cycle_momentum: DeepSpeed cycles the momentum unless this is false, and Quintet "
                "does not; set it to false"
            )
        given = {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT or value}
    check_arguments("schedule.arguments", config.name, _DEEPSPEED[config.name], given, _SET_IN_DEEPSPEED)
    for name, allowed in (("warmup_type", ("log", "linear")), ("decay_type", ("cosine", "inverse_square_root"))):
        if name in given and given[name] not in allowed:
            raise UserError(f"schedule.arguments.{name}: must be {' or '.join(allowed)}, found {given[name]!r}")


def _warmup(steps: float) -> int:
    """Return the steps of a warm-up, which for DeepSpeed are at least two."""
    if not isinstance(steps, int) or steps <= 0:
        raise ValueError(f"warmup_num_steps must be a whole number above 0, found {steps}")
    return max(2, steps)


def _warmup_part(s: int, warmup: int, warmup_type: str) -> float:
    """Return the fraction of a warm-up of W steps that is done at ``s``: s / W, or log(s + 1) / log W."""
    return 0.0 if s < 0 else math.log(s + 1) / math.log(warmup) if warmup_type == "log" else s / warmup


def _warmup_lr(
    s: int,
    highest: float,
    steps: int,
    warmup_min_lr: float = 0.0,
    warmup_max_lr: float | None = None,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> float:
    """Rise to ``warmup_max_lr``, or the optimizer's rate if None, and stay."""
    warmup, top = _warmup(warmup_num_steps), highest if warmup_max_lr is None else warmup_max_lr
    part = _warmup_part(s, warmup, warmup_type) if s < warmup else 1.0
    return warmup_min_lr + (top - warmup_min_lr) * part


def _warmup_decay_lr(
    s: int,
    highest: float,
    steps: int,
    total_num_steps: int | None = None,
    warmup_min_lr: float = 0.0,
    warmup_max_lr: float = 0.001,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> float:
    """Rise to ``warmup_max_lr``, and fall linearly to ``warmup_min_lr`` at ``total_num_steps``."""
    warmup, total = _warmup(warmup_num_steps), total_num_steps or steps
    part = _warmup_part(s, warmup, warmup_type) if s < warmup else max(0.0, (total - s) / max(1, total - warmup))
    return warmup_min_lr + (warmup_max_lr - warmup_min_lr) * part


def _warmup_cosine_lr(
    s: int,
    highest: float,
    steps: int,
    total_num_steps: int | None = None,
    warmup_min_ratio: float = 0.0,
    warmup_num_steps: int = 1000,
    cos_min_ratio: float = 0.0001,
    warmup_type: str = "log",
) -> float:
    """Rise to the optimizer's rate, fall along half a cosine to ``cos_min_ratio`` of it, and stay."""
    warmup, total = _warmup(warmup_num_steps), total_num_steps or steps
    if s < 0:
        return 0.0
    if s < warmup:
        return highest * (warmup_min_ratio + (1 - warmup_min_ratio) * _warmup_part(s, warmup, warmup_type))
    cosine = (1 + math.cos(math.pi * min(1.0, (s - warmup + 1) / max(1, total - warmup)))) / 2
    return highest * max(0.0, cos_min_ratio + (1 - cos_min_ratio) * cosine)


def _warmup_decay_cooldown_lr(
    s: int,
    highest: float,
    steps: int,
    total_num_steps: int | None = None,
    warmup_min_lr: float = 0.0,
    warmup_max_lr: float = 0.001,
    warmup_num_steps: int = 1000,
    warmup_patience_num_steps: int = 0,
    warmup_type: str = "linear",
    decay_min_lr: float | None = None,
    decay_num_steps: int = 0,
    decay_patience_num_steps: int = 0,
    decay_type: str = "cosine",
    decay_cycles: float = 0.5,
    cooldown_min_lr: float | None = None,
    cooldown_num_steps: int = 0,
) -> float:
    """Rise, stay, decay, stay, and fall along a line that would end at ``total_num_steps``.

    The rate stays that of the cooldown's last step.
    """
    warmup, total = _warmup(warmup_num_steps), total_num_steps or steps
    decay_begins = warmup + warmup_patience_num_steps
    decay_ends = decay_begins + decay_num_steps
    cooldown_begins = decay_ends + decay_patience_num_steps
    lowest = warmup_min_lr if decay_min_lr is None else decay_min_lr
    decayed = lowest if decay_num_steps > 0 else warmup_max_lr
    lowest = warmup_min_lr if cooldown_min_lr is None else cooldown_min_lr
    cooled = lowest if cooldown_num_steps > 0 else decayed
    if s < warmup:
        return warmup_min_lr + (warmup_max_lr - warmup_min_lr) * _warmup_part(s, warmup, warmup_type)
    if s < decay_begins:
        return warmup_max_lr
    if s < decay_ends and decay_type == "cosine":
        part = 0.5 * (1 + math.cos(2 * math.pi * decay_cycles * (s - decay_begins) / decay_num_steps))
        return decayed + (warmup_max_lr - decayed) * part
    if s < decay_ends:
        low = 1 / math.sqrt(decay_ends)
        return decayed + (warmup_max_lr - decayed) * (1 / math.sqrt(s) - low) / (1 / math.sqrt(decay_begins) - low)
    if s < cooldown_begins:
        return decayed
    last = min(s, cooldown_begins + cooldown_num_steps - 1)
    return cooled + (decayed - cooled) * max(0.0, (total - last) / max(1, total - cooldown_begins))


def _one_cycle(
    s: int,
    highest: float,
    steps: int,
    cycle_min_lr: float,
    cycle_max_lr: float,
    decay_lr_rate: float = 0.0,
    cycle_first_step_size: int = 2000,
    cycle_second_step_size: int | None = None,
    cycle_first_stair_count: int = 0,
    cycle_second_stair_count: int | None = None,
    decay_step_size: int = 0,
) -> float:
    """Rise from ``cycle_min_lr`` to ``cycle_max_lr`` and fall back (Smith 2018), in stairs if asked for, then decay."""
    first = cycle_first_step_size
    second = first if cycle_second_step_size is None else cycle_second_step_size
    if first <= 0 or second < 0:
        raise ValueError("cycle_first_step_size must be above 0, and cycle_second_step_size not below")
    cycle, step = first + second, s + 1
    if s < cycle:
        place = step % cycle
        part, length = (place, first) if place <= first else (cycle - place, second)
        second_stairs = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
        stairs = cycle_first_stair_count if place <= first else second_stairs
        height = math.floor(part * stairs / length) / stairs if stairs > 0 else part / length
        return cycle_min_lr + (cycle_max_lr - cycle_min_lr) * height
    return cycle_min_lr / (1 + decay_lr_rate * (step - cycle) / decay_step_size) if decay_step_size else cycle_min_lr


def _lr_range_test(
    s: int,
    highest: float,
    steps: int,
    lr_range_test_min_lr: float = 1e-3,
    lr_range_test_step_size: float = 2000,
    lr_range_test_step_rate: float = 1.0,
    lr_range_test_staircase: bool = False,
) -> float:
    """Rise without end, to find the highest rate that trains (Smith 2018)."""
    if not isinstance(lr_range_test_step_size, int) or lr_range_test_step_size <= 0:
        raise ValueError(f"lr_range_test_step_size must be a whole number above 0, found {lr_range_test_step_size}")
    interval = (s + 1) / lr_range_test_step_size
    return lr_range_test_min_lr * (
        1 + lr_range_test_step_rate * (math.floor(interval) if lr_range_test_staircase else interval)
    )


_DEEPSPEED: dict[str, Callable[..., float]] = {
    "WarmupLR": _warmup_lr,
    "WarmupDecayLR": _warmup_decay_lr,
    "WarmupCosineLR": _warmup_cosine_lr,
    "WarmupDecayCooldownLR": _warmup_decay_cooldown_lr,
    "OneCycle": _one_cycle,
    "LRRangeTest": _lr_range_test,
}
