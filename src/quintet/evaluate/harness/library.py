"""The only door to lm-evaluation-harness: the parts of its public interface that are used, with their types.

The library has no types of its own, and its releases differ: `TaskManager.load` and flat dictionaries of tasks came
with 0.4.12; releases before it have `load_task_or_group`. Everything else here is the same from 0.4.10 on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.config.keypath import is_mapping
from quintet.errors import one_line
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.names import OWN, folders_of

if TYPE_CHECKING:

    class LM:
        """A model that answers the harness's requests."""

        def __init__(self) -> None: ...

    class TaskConfig:
        """The configuration of a task, as its YAML file gives it."""

        task: str | None
        dataset_path: str | None
        dataset_name: str | None
        dataset_kwargs: dict[str, Any] | None
        training_split: str | None
        validation_split: str | None
        test_split: str | None
        num_fewshot: int | None
        process_docs: Callable[[Any], Any] | None
        process_results: Any

    class ExamplesConfig:
        """Where the examples in front of an item come from."""

        split: str | None
        samples: Any

    class Task:
        """A task, however it is made."""

        OUTPUT_TYPE: str | None
        task_name: str
        process_results: Callable[[Any, Any], dict[str, Any]]

        def set_fewshot_seed(self, seed: int | None = None) -> None: ...

    class ContextSampler:
        """Draws the examples in front of an item from ``df``, a data set."""

        df: Any

        def __init__(self, df: Any) -> None: ...
        def set_rnd(self, rnd: int | None) -> ContextSampler: ...
        def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any: ...

    class FirstNSampler(ContextSampler):
        """Takes the first examples, and draws nothing."""

    class ConfigurableTask(Task):
        """A task that a configuration describes; its functions may be the task's own code and return anything."""

        config: TaskConfig
        fewshot_cfg: ExamplesConfig
        sampler: ContextSampler
        dataset: dict[str, Any]
        features: list[str]
        multiple_input: Any

        def __init__(self, config: dict[str, Any]) -> None: ...
        def set_config(self, key: str, value: Any) -> None: ...
        def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None: ...
        def fewshot_docs(self) -> Any: ...
        def build_all_requests(self, **kwargs: Any) -> None: ...
        def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> Any: ...
        def process_results(self, doc: Any, results: Any) -> dict[str, Any]: ...
        def aggregation(self) -> dict[str, Any]: ...
        def higher_is_better(self) -> dict[str, bool]: ...
        def doc_to_text(self, doc: Any) -> Any: ...
        def doc_to_target(self, doc: Any) -> Any: ...
        def doc_to_choice(self, doc: Any) -> Any: ...

    class TaskManager:
        """An index of the tasks in some folders."""

        all_tasks: list[str]
        task_index: dict[str, Any]

        def __init__(self, *, include_path: list[str], include_defaults: bool) -> None: ...
        def load(self, names: str | list[str]) -> dict[str, Any]: ...
        def load_task_or_group(self, names: list[Any]) -> dict[str, Any]: ...

    def evaluate(
        model: Any, tasks: Any, *, samples: dict[str, list[int]], bootstrap_iters: int
    ) -> dict[str, Any] | None: ...
    def mean(arr: Any) -> float: ...
    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Callable[[Any], float] | None: ...
else:
    from lm_eval.api.metrics import mean, stderr_for_metric
    from lm_eval.api.model import LM
    from lm_eval.api.samplers import ContextSampler, FirstNSampler
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

__all__ = [
    "LM",
    "ConfigurableTask",
    "ContextSampler",
    "FirstNSampler",
    "Task",
    "TaskManager",
    "ask",
    "find_tasks",
    "is_python_task",
    "library_task",
    "mean",
    "stderr_for_metric",
]

_HAS_LOAD = hasattr(TaskManager, "load")
_STRUCTURE = ("tag", "group", "task_list", "class")  # keys of a definition that are not part of a task's configuration
_ALL = "all_of_a_benchmark"


class ConfigOnly:
    """Takes the place of a task and keeps its configuration, so that the harness resolves it and loads no data."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.task_name: str = config["task"]
        self.config = {key: value for key, value in config.items() if key not in _STRUCTURE}


def find_tasks(name: str) -> tuple[TaskManager, list[dict[str, Any]]]:
    """Return an index with the benchmark ``name``, and the configuration of each of its tasks, groups resolved.

    A definition's `class` makes the task, and a group passes its values on to its tasks: a group that holds only
    ``name`` and has the class ``ConfigOnly`` gives all configurations. Only the folders of ``name`` are read, because
    reading all 14,000 files of the harness takes fifteen seconds. Raises NotReachable if the harness does not have
    ``name`` or cannot resolve a task.
    """
    with tempfile.TemporaryDirectory() as own:
        if _HAS_LOAD:
            inner = f"{{group: kept, class: !function {__name__}.ConfigOnly, task: [{json.dumps(name)}]}}"
            (Path(own) / "all.yaml").write_text(f"group: {_ALL}\ntask:\n- {inner}\n", encoding="utf-8")
        folders = [str(folder) for folder in (OWN, *folders_of(name), own)]
        manager = TaskManager(include_path=folders, include_defaults=False)
        if name not in manager.all_tasks:
            raise NotReachable(f"the harness has no task {name!r}")
        try:
            if _HAS_LOAD:
                built: Any = manager.load(_ALL).get("groups", {})[_ALL]
            else:
                built = manager.load_task_or_group([{"task": name, "class": ConfigOnly}])
        except Exception as error:  # a task's functions are imported, which may need a missing library
            raise NotReachable(one_line(error, lines=1, typed=True)) from error
    return manager, [task.config for task in _leaves(built)]


def _leaves(built: Any) -> Iterator[ConfigOnly]:
    if isinstance(built, ConfigOnly):
        yield built
        return
    for child in built.values() if is_mapping(built) else built:
        yield from _leaves(child)


def library_task(manager: TaskManager, name: str) -> Any:
    """Return the task ``name`` as the harness builds it."""
    return manager.load([name])["tasks"][name] if _HAS_LOAD else manager.load_task_or_group([name])[name]


def is_python_task(manager: TaskManager, name: str) -> bool:
    """Return True if a class of the harness makes the task ``name``, and not a configuration."""
    entry: Any = manager.task_index.get(name)
    if is_mapping(entry):  # before 0.4.12
        return entry["type"] == "python_task"
    return "class" in (getattr(entry, "cfg", None) or {})


def ask(model: LM, tasks: Mapping[str, Any], samples: dict[str, list[int]]) -> dict[str, Any]:
    """Return the harness's results of ``model`` on ``tasks``; ``samples`` limits a task to the items of these
    numbers."""
    results = evaluate(model, {"tasks": tasks} if _HAS_LOAD else tasks, samples=samples, bootstrap_iters=0)
    assert results is not None, "every process gets the results"
    return results
