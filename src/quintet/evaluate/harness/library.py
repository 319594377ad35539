"""lm-evaluation-harness by its public interfaces, where its releases differ.

`TaskManager.load` and flat dictionaries of tasks came with 0.4.12; before it there is `load_task_or_group`. All else
that is used is the same from 0.4.10 on: `LM`, `ConfigurableTask`, the samplers, the metrics and `evaluate`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from quintet.errors import one_line
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.names import OWN, folders_of

_HAS_LOAD = hasattr(TaskManager, "load")
_STRUCTURE = ("tag", "group", "task_list", "class")  # keys of a definition that are none of a task's configuration
_ALL = "all_of_a_benchmark"


class Kept:
    """Stands in for a task and keeps its configuration, so that the harness resolves all of it and loads no data."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.task_name = config["task"]
        self.config = {key: value for key, value in config.items() if key not in _STRUCTURE}


def find_tasks(name: str) -> tuple[TaskManager, list[dict[str, Any]]]:
    """An index of what ``name`` stands for, and the configuration of each of its tasks with all that its groups say.

    The `class` of a definition makes the task, and a group hands its values on to its tasks: a group of ``name`` alone
    with the class ``Kept`` tells them all. Only the folders of ``name`` are read, for all of the harness's 14,000 files
    would take fifteen seconds. Raises NotReachable where the harness does not have ``name`` or cannot resolve a task.
    """
    with tempfile.TemporaryDirectory() as own:
        if _HAS_LOAD:
            inner = f"{{group: kept, class: !function {__name__}.Kept, task: [{json.dumps(name)}]}}"
            (Path(own) / "all.yaml").write_text(f"group: {_ALL}\ntask:\n- {inner}\n", encoding="utf-8")
        folders: Any = [str(folder) for folder in (OWN, *folders_of(name), own)]  # annotated too narrowly
        manager = TaskManager(include_path=folders, include_defaults=False)
        if name not in manager.all_tasks:
            raise NotReachable(f"the harness has no task {name!r}")
        try:
            if _HAS_LOAD:
                built: Any = manager.load(_ALL).get("groups", {})[_ALL]
            else:
                built = manager.load_task_or_group([{"task": name, "class": Kept}])
        except Exception as error:  # a task's functions are imported, which may need a library that is not there
            raise NotReachable(one_line(error, lines=1, typed=True)) from error
    return manager, [kept.config for kept in _leaves(built)]


def _leaves(built: Any) -> Iterator[Kept]:
    if isinstance(built, Kept):
        yield built
    else:
        for child in built.values() if isinstance(built, dict) else built:
            yield from _leaves(child)


def library_task(manager: TaskManager, name: str) -> Task:
    """The task ``name`` as the harness builds it."""
    return manager.load([name])["tasks"][name] if _HAS_LOAD else manager.load_task_or_group([name])[name]


def written_in_python(manager: TaskManager, name: str) -> bool:
    """True for a task that a class of the harness's makes, and not a configuration."""
    entry: Any = manager.task_index.get(name)
    if isinstance(entry, dict):  # before 0.4.12
        return entry["type"] == "python_task"
    return "class" in (getattr(entry, "cfg", None) or {})


def ask(model: Any, tasks: Mapping[str, Task], samples: dict[str, list[int]]) -> dict[str, Any]:
    """The harness's results of ``model`` on ``tasks``, of which ``samples`` names items by their numbers."""
    asked: Any = {"tasks": tasks} if _HAS_LOAD else tasks
    found = evaluate(model, asked, samples=samples, bootstrap_iters=0)
    assert found is not None, "every process gets the results"
    return dict(found)
