"""What a run file says about training in other libraries' words, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.errors import UserError


def check_training(config: RunConfig) -> None:
    """Raise UserError when optimizer, schedule or trackers are not what their libraries know, the key of each first.

    Only the libraries that the run file names are imported.
    """
    problems: list[str] = []
    for check in _checks(config):
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _checks(config: RunConfig) -> list[Callable[[], object]]:
    found: list[Callable[[], object]] = []
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, TorchOptimizerConfig):
        from quintet.train.optimizer import check_optimizer

        found.append(lambda: check_optimizer(optimizer))
    if isinstance(schedule, TransformersScheduleConfig):
        from quintet.train.schedules.transformers import check_transformers_schedule

        found.append(lambda: check_transformers_schedule(schedule))
    if isinstance(schedule, DeepSpeedScheduleConfig):
        from quintet.train.schedules.deepspeed import check_deepspeed_schedule

        found.append(lambda: check_deepspeed_schedule(schedule))
    if isinstance(schedule, TorchScheduleConfig):
        from quintet.train.schedules.torch import check_torch_schedule

        found.append(lambda: check_torch_schedule(schedule))
    if config.track:
        from quintet.track import check_trackers

        found.append(lambda: check_trackers(config))
    packing = config.data.packing
    if isinstance(packing, TaskPackingConfig):
        from quintet.piano.tasks import tasks_from

        found.append(lambda: tasks_from(packing.tasks, "data.packing.tasks"))
    if isinstance(packing, MusicPackingConfig) and config.sample.prompts:
        found.append(_check_pictures)
    return found


def _check_pictures() -> None:
    missing = [name for name in ("symusic", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"sample.prompts: samples of music need {' and '.join(missing)}; pip install 'quintet[piano]', or set "
            "sample.prompts: []"
        )
