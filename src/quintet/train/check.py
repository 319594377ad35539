"""Checks of a run file that other libraries must answer, made before anything runs."""

from __future__ import annotations

from collections.abc import Callable

from quintet.config.model import HuggingFaceConfig
from quintet.config.names import is_run, local_path, name_problem
from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.errors import UserError, nearest
from quintet.libraries import check_installed, is_installed
from quintet.train.run_folder import run_folder


def check_training(config: RunConfig) -> None:
    """Raise UserError when optimizer, schedule or trackers are not what their libraries know, the key of each first.

    Only the libraries that the run file names are imported.
    """
    problems: list[str] = _check_name(config)
    for check in _checks(config):
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _check_name(config: RunConfig) -> list[str]:
    """Return what is wrong with the run's name; a run that exists already may keep its name."""
    problem = name_problem(config.name)
    if problem is None or (config.name not in (".", "..") and is_run(run_folder(config))):
        return []
    return [f"name: {config.name!r} {problem}"]


def _checks(config: RunConfig) -> list[Callable[[], object]]:
    found: list[Callable[[], object]] = []
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, TorchOptimizerConfig):
        from quintet.train.optimizer import check_optimizer, check_sharded

        found.append(lambda: check_optimizer(optimizer))
        if config.parallel.kind in ("fsdp", "hsdp"):
            found.append(lambda: check_sharded(optimizer))
    if isinstance(schedule, TransformersScheduleConfig):
        from quintet.train.library_schedules import check_transformers_schedule

        found.append(lambda: check_transformers_schedule(schedule))
    if isinstance(schedule, DeepSpeedScheduleConfig):
        from quintet.train.library_schedules import check_deepspeed_schedule

        found.append(lambda: check_deepspeed_schedule(schedule))
    if isinstance(schedule, TorchScheduleConfig):
        from quintet.train.library_schedules import check_torch_schedule

        found.append(lambda: check_torch_schedule(schedule, optimizer))
    model = config.model
    if model.kind == "huggingface" and model.config:
        found.append(lambda: _check_model_config(model))
    if config.parallel.kind == "deepspeed":
        from quintet.train.integrations.deepspeed import check_deepspeed

        found.append(lambda: check_deepspeed(config))
    if config.train.precision == "fp16":
        from quintet.train.compute import check_compute

        found.append(lambda: check_compute(config.train))
    if config.track:
        from quintet.track.composite import check_trackers

        found.append(lambda: check_trackers(config))
    packing = config.data.packing
    if isinstance(packing, TaskPackingConfig):
        from quintet.piano.tasks import tasks_from

        found.append(lambda: tasks_from(packing.tasks, "data.packing.tasks"))
    if isinstance(packing, MusicPackingConfig) and config.sample.prompts:
        found.append(_check_pictures)
    if config.evaluate.tasks:
        found.append(lambda: _check_benchmarks(config))
    return found


def _check_model_config(config: HuggingFaceConfig) -> None:
    """Raise UserError for a type of models that the transformers library, where it is installed, does not know, and
    for numbers that do not fit one another, where the model is new and described on this machine."""
    if not is_installed("transformers"):
        return
    from transformers import CONFIG_MAPPING

    from quintet.model.hf.count import check_numbers

    name = config.config.get("model_type")
    if name is not None and name not in CONFIG_MAPPING:
        like = nearest(name, CONFIG_MAPPING)
        meant = f"; did you mean {like!r}?" if like else ""
        raise UserError(f"model.config.model_type: {name!r} is no type of models that transformers knows{meant}")
    here = config.name_or_path in CONFIG_MAPPING or local_path(config.name_or_path).is_dir()
    if here and not config.pretrained and not config.trust_remote_code:
        check_numbers(config)


def _check_benchmarks(config: RunConfig) -> None:
    from quintet.evaluate.harness.items import check_data_dir
    from quintet.evaluate.harness.names import check_tasks

    check_tasks(config.evaluate.tasks, "evaluate.tasks")
    if config.loss.kind == "masked" or getattr(getattr(config.model, "attention", None), "kind", "") == "bidirectional":
        raise UserError(
            "evaluate.tasks: benchmarks ask how likely a text is from left to right, and this model fills in hidden "
            "tokens or reads in both directions; leave them out"
        )
    if isinstance(config.data.packing, MusicPackingConfig) or config.tokenizer.kind == "ids":
        raise UserError("evaluate.tasks: the tokens of this run are no text, and benchmarks are texts; leave them out")
    if config.evaluate.data_dir is not None:
        check_data_dir(config.evaluate.data_dir, "evaluate.data_dir")


def _check_pictures() -> None:
    what, otherwise = "sample.prompts: a sample of music", "set sample.prompts: []"
    check_installed("symusic", "matplotlib", extra="piano", what=what, otherwise=otherwise)
