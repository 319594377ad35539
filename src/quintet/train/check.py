"""Checks of a run file that need other libraries, made before anything runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from quintet.config.model import HuggingFaceConfig, PretrainedInitConfig
from quintet.config.names import (
    in_hub_cache,
    is_hub_name,
    is_path,
    is_run,
    local_path,
    name_problem,
    placeholder_problem,
    run_named,
)
from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.schedule import DeepSpeedScheduleConfig, TorchScheduleConfig, TransformersScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.secrets import check_secrets
from quintet.config.tokenizer import HuggingFaceTokenizerConfig, SavedTokenizerConfig
from quintet.data.sources import sources_of
from quintet.data.sources.reading import is_remote
from quintet.errors import NotHere, UserError, collect_problems, did_you_mean, nearest
from quintet.libraries import check_installed, is_installed
from quintet.train.run_folder import run_folder


def check_training(config: RunConfig) -> None:
    """Raise UserError for each value that another library refuses, as of the optimizer, the schedule or a tracker.

    Raises NotHere if the only problems are libraries that are not installed. Imports only the libraries that the run
    file names.
    """
    mistakes, missing = collect_problems(training_checks(config))
    if mistakes:
        raise UserError(*mistakes, *missing)
    if missing:
        raise NotHere(*missing)


def _check_name(config: RunConfig) -> None:
    """Raise UserError for a name that no folder can have; an existing run may keep its name."""
    problem = name_problem(config.name)
    if problem is not None and (config.name in (".", "..") or not is_run(run_folder(config))):
        raise UserError(f"name: {config.name!r} {problem}")


def training_checks(config: RunConfig) -> list[Callable[[], object]]:
    """Return the checks that need other libraries. Each raises UserError, or NotHere without its library."""
    checks: list[Callable[[], object]] = [lambda: _check_name(config), lambda: check_secrets(config)]
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, TorchOptimizerConfig):
        from quintet.train.library_optimizers import check_optimizer, check_sharded

        checks.append(lambda: check_optimizer(optimizer))
        if config.parallel.kind in ("fsdp", "hsdp"):
            checks.append(lambda: check_sharded(optimizer))
    if isinstance(schedule, TransformersScheduleConfig):
        from quintet.train.library_schedules import check_transformers_schedule

        checks.append(lambda: check_transformers_schedule(schedule))
    if isinstance(schedule, DeepSpeedScheduleConfig):
        from quintet.train.library_schedules import check_deepspeed_schedule

        checks.append(lambda: check_deepspeed_schedule(schedule))
    if isinstance(schedule, TorchScheduleConfig):
        from quintet.train.library_schedules import check_torch_schedule

        checks.append(lambda: check_torch_schedule(schedule, optimizer))
    model = config.model
    if model.kind == "huggingface" and model.config:
        checks.append(lambda: _check_model_config(model))
    if config.parallel.kind == "deepspeed":
        from quintet.train.integrations.deepspeed import check_deepspeed

        checks.append(lambda: check_deepspeed(config))
    part = config.train
    if part.precision in ("fp16", "tf32") or part.device not in ("auto", "cpu") or part.compile is True:
        from quintet.train.compute import check_compute

        checks.append(lambda: check_compute(config.train))
    if config.track:
        from quintet.track.composite import check_trackers

        checks.append(lambda: check_trackers(config))
    packing = config.data.packing
    if isinstance(packing, TaskPackingConfig):
        from quintet.piano.tasks import tasks_from

        checks.append(lambda: tasks_from(packing.tasks, "data.packing.tasks"))
    if isinstance(packing, MusicPackingConfig) and config.sample.prompts:
        checks.append(_check_pictures)
    if config.evaluate.tasks:
        checks.append(lambda: _check_benchmarks(config))
    return checks


def _check_model_config(config: HuggingFaceConfig) -> None:
    """Raise UserError for a model type that the transformers library, if it is installed, does not know.

    Also for numbers that contradict each other, if the model is new and its description is on this machine.
    """
    if not is_installed("transformers"):
        return
    from transformers import CONFIG_MAPPING

    from quintet.model.hf.count import check_numbers

    name = config.config.get("model_type")
    if name is not None and name not in CONFIG_MAPPING:
        hint = did_you_mean(nearest(name, CONFIG_MAPPING))
        raise UserError(f"model.config.model_type: {name!r} is no type of models that transformers knows{hint}")
    here = config.name_or_path in CONFIG_MAPPING or local_path(config.name_or_path).is_dir()
    if here and not config.pretrained and not config.trust_remote_code:
        check_numbers(config)


def _check_benchmarks(config: RunConfig) -> None:
    from quintet.evaluate.harness.items import check_data_dir
    from quintet.evaluate.harness.names import check_tasks

    check_tasks(config.evaluate.tasks, "evaluate.tasks")
    if config.loss.kind == "masked" or getattr(getattr(config.model, "attention", None), "kind", "") == "bidirectional":
        raise UserError(
            "evaluate.tasks: benchmarks need the likelihood of a text from left to right, and this model fills in "
            "hidden tokens or reads in both directions; remove them"
        )
    if isinstance(config.data.packing, MusicPackingConfig) or config.tokenizer.kind == "ids":
        raise UserError("evaluate.tasks: the tokens of this run are not text, and benchmarks are; remove them")
    if config.evaluate.data_dir is not None:
        check_data_dir(config.evaluate.data_dir, "evaluate.data_dir")


def _check_pictures() -> None:
    what, otherwise = "sample.prompts: a sample of music", "set sample.prompts: []"
    check_installed("symusic", "matplotlib", extra="piano", what=what, otherwise=otherwise)


def check_inputs_here(config: RunConfig, *, on_hub: bool = True) -> None:
    """Raise NotHere for tokenizers, checkpoints, datasets, templates and texts that this machine lacks.

    With ``on_hub`` names on the hub must be in its cache; otherwise they count as available.
    """
    hub = partial(_absent, fetched=not on_hub)
    missing: list[str] = []
    for source, where in sources_of(config):
        if source.kind == "huggingface" and is_hub_name(source.path):
            missing += hub(f"{where}.path", source.path, "dataset")
        template = getattr(getattr(source, "document", None), "template", None)
        if template is not None:
            missing += _absent(f"{where}.document.template", template)
    tokenizer, model, text = config.tokenizer, config.model, config.evaluate.text_modeling
    if isinstance(tokenizer, HuggingFaceTokenizerConfig):
        missing += hub("tokenizer.path", tokenizer.path, "model")
    if isinstance(tokenizer, SavedTokenizerConfig) and run_named(tokenizer.path) is None:
        missing += _absent("tokenizer.path", tokenizer.path)
    if isinstance(model, HuggingFaceConfig):
        if model.pretrained or "/" in model.name_or_path:
            missing += hub("model.name_or_path", model.name_or_path, "model")
    elif isinstance(model.init, PretrainedInitConfig) and run_named(model.init.path) is None:
        missing += hub("model.init.path", model.init.path, "model")
    if text is not None and text.path is not None and not is_remote(text.path):
        missing += _absent("evaluate.text_modeling.path", text.path)
    if missing:
        raise NotHere(*missing)


def _absent(
    key: str, name: str, on_hub: Literal["model", "dataset"] | None = None, *, fetched: bool = False
) -> list[str]:
    """Return a line if ``name`` is neither a file or folder nor, if it may be ``on_hub``, in the cache of the hub.

    With ``fetched`` any name that may be on the hub counts as available.
    """
    if (placeholder := placeholder_problem(key, name)) is not None:
        return [placeholder]
    if is_path(name):
        return []
    if on_hub is None or not is_hub_name(name):
        return [f"{key}: there is no {name} in {Path.cwd()}"]
    if fetched or in_hub_cache(name, on_hub):
        return []
    return [f"{key}: {name} is no folder here, and not in the cache of the hub"]
