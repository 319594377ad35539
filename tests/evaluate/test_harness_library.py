"""The harness by its public interfaces: what is imported of it, and how its definitions are found.

To test another release than the installed one: `pip install --no-deps --target FOLDER lm_eval==0.4.10`, and
`PYTHONPATH=FOLDER pytest tests/evaluate`.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.library import find_tasks, is_python_task

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLIC = {
    "lm_eval.api.metrics": {"mean", "stderr_for_metric"},
    "lm_eval.api.model": {"LM"},
    "lm_eval.api.samplers": {"ContextSampler", "FirstNSampler"},
    "lm_eval.api.task": {"ConfigurableTask", "Task"},
    "lm_eval.evaluator": {"evaluate"},
    "lm_eval.tasks": {"TaskManager"},
    "lm_eval.tasks.race.preprocess_race": {"doc_to_choice", "doc_to_target", "doc_to_text"},  # a task's own file
}


def test_only_public_names_of_the_harness_are_imported() -> None:
    for file in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lm_eval":
                assert {alias.name for alias in node.names} <= PUBLIC.get(node.module or "", set()), file
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "lm_eval" for alias in node.names), file


def test_the_installed_release_is_one_of_those_that_the_eval_extra_takes() -> None:
    import lm_eval
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["eval"]
    (wanted,) = (Requirement(one) for one in extra if one.startswith("lm_eval"))
    metadata = next(Path(lm_eval.__file__).parents[1].glob("lm_eval-*.dist-info")) / "METADATA"
    version = re.search(r"^Version: (.+)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert wanted.specifier.contains(version[1])


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("winogrande", "winogrande", 1),
        ("lambada", "lambada_openai", 2),  # a group's file with another group's members
        ("ai2_arc", "arc_challenge", 2),  # a tag
        ("mmlu_stem", "mmlu_abstract_algebra", 19),  # a tag of a group within a group
        ("mmlu", "mmlu_abstract_algebra", 57),
        ("race_middle", "race_middle", 1),  # one of ours
    ],
)
def test_a_name_is_resolved_to_the_configurations_of_its_tasks(name: str, first: str, count: int) -> None:
    manager, configs = find_tasks(name)
    names = [config["task"] for config in configs]
    assert len(names) == len(set(names)) == count
    assert min(names) == first
    assert all(config["dataset_path"] and "class" not in config for config in configs)
    assert not any(is_python_task(manager, one) for one in names)


def test_a_task_that_a_class_makes_is_told_from_others() -> None:
    manager, configs = find_tasks("squadv2")
    assert [config["task"] for config in configs] == ["squadv2"]
    assert is_python_task(manager, "squadv2")


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotReachable, match="the harness has no task 'nothing_of_this_name'"):
        find_tasks("nothing_of_this_name")
