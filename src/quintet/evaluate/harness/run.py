"""Asking a model the items of benchmarks."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quintet.config.names import local_path
from quintet.evaluate.harness.batches import Limit
from quintet.evaluate.harness.figures import Benchmark, Benchmarks, Figure, count_of
from quintet.evaluate.harness.local_data import NotReachable
from quintet.evaluate.harness.scoring import Unscored
from quintet.evaluate.subject import Subject

if TYPE_CHECKING:
    from quintet.evaluate.harness.model import HarnessModel
    from quintet.evaluate.harness.tasks import Absent, Wish

_RESAMPLED = 1000  # draws behind the standard error of a figure that is no mean


@dataclass(frozen=True)
class Asking:
    """What is asked: ``tasks`` by name, ``samples`` items of each (None: all), ``shots`` examples in front of an item,
    ``data_dir`` with files instead of the hub, and ``batch_size`` texts as long as the context in one forward pass."""

    tasks: tuple[str, ...]
    samples: int | None = 1000
    shots: int = 0
    data_dir: str | None = None
    batch_size: int = 16


def run_benchmarks(subject: Subject, asking: Asking, begins: bool = False) -> Benchmarks:
    """The figures of ``subject`` on each benchmark; one that cannot be measured is named with the reason.

    ``begins``: each text gets the tokenizer's first id in front, as a Hugging Face tokenizer may do by itself. The
    global random generators are left as they were.
    """
    from quintet.evaluate.harness.model import HarnessModel

    length = subject.model.context_length
    return _measured(HarnessModel(subject, Limit(asking.batch_size * length, length), begins), asking)


def try_benchmarks(subject: Subject, asking: Asking) -> None:
    """Encode the items of each benchmark, where the tokenizer may not write every text. Raises UserError for an item
    that it cannot write; what else cannot be measured is told when it is."""
    if {bytes([byte]) for byte in range(256)} <= set(subject.tokenizer.pieces.table):
        return
    from quintet.evaluate.harness.model import TrialModel

    length = subject.model.context_length
    _measured(TrialModel(subject, Limit(asking.batch_size * length, length)), asking)


def _measured(model: HarnessModel, asking: Asking) -> Benchmarks:
    from quintet.evaluate.harness.tasks import Wish

    folder = None if asking.data_dir is None else local_path(asking.data_dir)
    wish = Wish(asking.samples, asking.shots, folder)
    measured: dict[str, Benchmark] = {}
    missing: dict[str, str] = {}
    with _quiet():
        for name in asking.tasks:
            try:
                measured[name] = _measure(name, model, wish)
            except NotReachable as error:
                missing[name] = str(error)
    return Benchmarks(measured, missing)


def _measure(name: str, model: HarnessModel, wish: Wish) -> Benchmark:
    from lm_eval.evaluator import evaluate

    from quintet.evaluate.harness.tasks import Absent, load

    loaded = load(name, wish)
    tasks: dict[str, Any] = {task.task_name: task for task in loaded if not isinstance(task, Absent)}
    absent = [task for task in loaded if isinstance(task, Absent) and task.reason]
    if not tasks:
        raise NotReachable(absent[0].reason if absent else "it has no items")
    for task in tasks.values():
        _leave_out_unscored(task)
    model.cut.clear()
    model.unscored.clear()
    try:
        found = evaluate(model, {"tasks": tasks}, limit=wish.samples, bootstrap_iters=_RESAMPLED, log_samples=True)
    except Exception as error:  # what a task's own code makes of an answer; what the model raises is no task's
        if model.failure is not None:
            raise
        raise NotReachable(f"{type(error).__name__}: {error}") from error
    assert found is not None
    results = found.get("results", {})
    figures = _of_one(found, next(iter(tasks))) if len(tasks) == 1 else _pooled(found, list(tasks))
    items = sum(results[task]["sample_len"] for task in tasks)
    warnings = tuple(_warnings(tasks, absent, model))
    if not items:
        raise NotReachable(f"no item has a figure ({'; '.join(warnings)})")
    return Benchmark(figures, items, len(tasks), warnings)


def _leave_out_unscored(task: Any) -> None:
    """Let an item with an `Unscored` answer have no figure."""
    figures_of = task.process_results

    def process_results(doc: Any, results: Any) -> dict[str, Any]:
        return {} if any(isinstance(one, Unscored) for one in results) else figures_of(doc, results)

    task.process_results = process_results


def _of_one(found: Any, task: str) -> dict[str, Figure]:
    """The figures of one task as the harness makes them."""
    values, figures = found["results"][task], {}
    for name, value in values.items():
        metric, comma, rule = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{rule}")
            figures[_named(metric, rule)] = Figure(
                float(value), float(error) if isinstance(error, int | float) else float("nan")
            )
    return dict(sorted(figures.items()))


def _pooled(found: Any, tasks: Sequence[str]) -> dict[str, Figure]:
    """The figures over all items of several tasks, for what is a mean over items in each of them."""
    values: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        for sample in found["samples"][task]:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    values[_named(metric, sample["filter"])].append(float(sample[metric]))
    return {name: Figure.of(one) for name, one in sorted(values.items())}


def _named(metric: str, rule: str) -> str:
    return metric if rule == "none" else f"{metric}/{rule}"


def _warnings(tasks: dict[str, Any], absent: list[Absent], model: HarnessModel) -> Iterator[str]:
    for name, task in tasks.items():
        of = f"{name}: " if len(tasks) > 1 else ""
        wanted = getattr(task, "wanted", len({one.doc_id for one in task.instances}))
        for line in getattr(task, "data_problems", []):
            yield f"{of}left out: {line}"
        for what, numbers in getattr(task, "problems", {}).items():
            yield of + count_of(what, numbers, wanted)
        unscored = model.unscored.get(name, {})
        left_out = set().union(*unscored.values())
        cut = model.cut.get(name, set()) - left_out
        seen = {f"left out: {problem}": items for problem, items in unscored.items()}
        if cut:
            length = model.encoder.context_length
            seen[f"longer than the context of {length} tokens, read without their beginning"] = cut
        for what, items in seen.items():
            numbers = getattr(task, "numbers", None) or range(max(items) + 1)
            yield of + count_of(what, [numbers[one] for one in sorted(items)], wanted)
    if absent:
        of = f"{len(absent)} of its {len(absent) + len(tasks)} tasks"
        yield f"{of} are not in it; {absent[0].task_name}: {absent[0].reason}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the log lines of the harness and of `datasets`, and with the global random generators left
    as they were."""
    import random

    import numpy as np
    import torch

    logs = {name: logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")}
    levels = {name: log.level for name, log in logs.items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for log in logs.values():
        log.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, log in logs.items():
            log.setLevel(levels[name])
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
