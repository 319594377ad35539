"""Asking a model the items of benchmarks."""

from __future__ import annotations

import io
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from quintet.config.names import local_path
from quintet.evaluate.harness.batches import Limit
from quintet.evaluate.harness.figures import Benchmark, Benchmarks, Figure, count_of
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.scoring import Unscored
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer

if TYPE_CHECKING:
    from quintet.evaluate.harness.model import HarnessModel
    from quintet.evaluate.harness.tasks import MissingTask, TaskOptions

_RESAMPLED = 1000  # draws for the standard error of a figure that is no mean
_RESAMPLED_SLOWLY = 100  # for those below, as in the harness
_Values = dict[tuple[str, str], list[Any]]
_SLOW = ("bleu", "chrf", "chrf++", "ter")


@dataclass(frozen=True)
class EvalOptions:
    """The benchmarks to ask: ``tasks`` by name, ``samples`` items of each (None: all), ``shots`` examples in front of
    an item (None: as many as the task itself says), ``data_dir`` with files instead of the hub, and ``batch_size``
    texts as long as the context in one forward pass."""

    tasks: tuple[str, ...]
    samples: int | None = 1000
    shots: int | None = None
    data_dir: str | None = None
    batch_size: int = 16


def run_benchmarks(language_model: ModelAndTokenizer, options: EvalOptions) -> Benchmarks:
    """The figures of ``language_model`` on each benchmark; one that cannot be measured is named with the reason.

    The global random generators are left as they were.
    """
    from quintet.evaluate.harness.model import HarnessModel

    length = language_model.model.context_length
    return _measured(HarnessModel(language_model, Limit(options.batch_size * length, length)), options)


def try_benchmarks(language_model: ModelAndTokenizer, options: EvalOptions) -> None:
    """Encode the items of each benchmark, where the tokenizer may not write every text. Raises UserError for an item
    that it cannot write; what else cannot be measured is told when it is."""
    if {bytes([byte]) for byte in range(256)} <= set(language_model.tokenizer.pieces.table):
        return
    from quintet.evaluate.harness.model import TrialModel

    length = language_model.model.context_length
    _measured(TrialModel(language_model, Limit(options.batch_size * length, length)), options)


def _measured(model: HarnessModel, options: EvalOptions) -> Benchmarks:
    from quintet.evaluate.harness.tasks import TaskOptions

    folder = None if options.data_dir is None else local_path(options.data_dir)
    task_options = TaskOptions(options.samples, options.shots, folder)
    measured: dict[str, Benchmark] = {}
    missing: dict[str, str] = {}
    with _quiet():
        for name in options.tasks:
            try:
                measured[name] = _measure(name, model, task_options)
            except NotReachable as error:
                missing[name] = str(error)
    return Benchmarks(model.precision, measured, missing)


def _measure(name: str, model: HarnessModel, task_options: TaskOptions) -> Benchmark:
    from quintet.evaluate.harness.library import ask
    from quintet.evaluate.harness.tasks import MissingTask, load

    _begin_anew()
    loaded = load(name, task_options)
    tasks: dict[str, Any] = {task.task_name: task for task in loaded if not isinstance(task, MissingTask)}
    missing = [task for task in loaded if isinstance(task, MissingTask) and task.reason]
    if not tasks:
        raise NotReachable(missing[0].reason if missing else "it has no items")
    for task in tasks.values():
        _leave_out_unscored(task)
    model.cut.clear()
    model.unscored.clear()
    try:
        found = ask(model, tasks, _spread_over(tasks))
        values = {task: _values(found["samples"][task]) for task in tasks}
        figures, others = _figures(values, {task: int(found["n-shot"][task] or 0) for task in tasks}, tasks)
    except Exception as error:  # what a task's own code makes of an answer; what the model raises is no task's
        if model.failure is not None:
            raise
        raise NotReachable(f"{type(error).__name__}: {error}") from error
    items = sum(max(map(len, own.values()), default=0) for own in values.values())
    warnings = [*_warnings(tasks, missing, model), *(f"{other} is no number" for other in others)]
    if not items:
        raise NotReachable(f"no item has a figure ({'; '.join(warnings)})")
    return Benchmark(figures, items, len(tasks), tuple(warnings))


def _spread_over(tasks: Mapping[str, Any]) -> dict[str, list[int]]:
    """The items to ask of those tasks that do not choose them themselves."""
    return {name: task.spread for name, task in tasks.items() if hasattr(task, "spread")}


def _leave_out_unscored(task: Any) -> None:
    """Let an item with an `Unscored` answer have no figure."""
    figures_of = task.process_results

    def process_results(doc: Any, results: Any) -> dict[str, Any]:
        return {} if any(isinstance(one, Unscored) for one in results) else figures_of(doc, results)

    task.process_results = process_results


def _figures(
    values: Mapping[str, _Values], shots: Mapping[str, int], tasks: Mapping[str, Any]
) -> tuple[dict[str, Figure], list[str]]:
    """The figures of ``tasks`` from the ``values`` of their items, and the names of those that are no numbers.

    A figure that each of the tasks has, aggregated by the same rule and asked after as many examples, is aggregated
    over all of their items; any other is one of each task that has it.
    """
    from lm_eval.api.metrics import mean

    keys = dict.fromkeys(key for own in values.values() for key in own)
    figures: dict[str, Figure] = {}
    others: list[str] = []
    for metric, filtered in sorted(keys):
        having = [task for task in tasks if (metric, filtered) in values[task]]
        rules = {task: tasks[task].aggregation().get(metric, mean) for task in having}
        alike = len(set(map(_name_of, rules.values()))) == 1 == len(set(shots.values()))
        together = alike and len(having) == len(tasks)
        name = metric if filtered == "none" else f"{metric}/{filtered}"
        for group in [having] if together else [[task] for task in having]:
            asked = [value for task in group for value in values[task][metric, filtered]]
            figure = _figure(metric, rules[group[0]], asked, shots[group[0]])
            named = name if together else f"{group[0]}/{name}"
            if figure is None:
                others.append(named)
            else:
                figures[named] = figure
    return figures, others


def _values(samples: Sequence[Mapping[str, Any]]) -> _Values:
    """The value of each item, by figure and filter."""
    values: _Values = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            values[metric, sample["filter"]].append(sample[metric])
    return values


def _figure(metric: str, aggregate: Callable[[Sequence[Any]], Any], values: list[Any], shots: int) -> Figure | None:
    """The figure of ``values``, one of each item, with the harness's standard error; None where it is no number."""
    from lm_eval.api.metrics import stderr_for_metric

    value = aggregate(values)
    if not isinstance(value, Real):
        return None
    error_of = stderr_for_metric(aggregate, _RESAMPLED_SLOWLY if metric in _SLOW else _RESAMPLED)
    error = error_of(values) if error_of is not None and len(values) > 1 else math.nan
    return Figure(float(value), float(error), len(values), shots)


def _name_of(aggregate: Any) -> tuple[str, ...]:
    """The identity of a rule of aggregation, also where each task has loaded it anew."""
    inner = getattr(aggregate, "func", aggregate)  # of functools.partial
    settings = (getattr(aggregate, "args", ()), getattr(aggregate, "keywords", {}))
    return getattr(inner, "__module__", ""), getattr(inner, "__qualname__", repr(inner)), repr(settings)


def _warnings(tasks: dict[str, Any], missing: list[MissingTask], model: HarnessModel) -> Iterator[str]:
    for name, task in tasks.items():
        of = f"{name}: " if len(tasks) > 1 else ""
        wanted = getattr(task, "wanted", len({one.doc_id for one in task.instances}))
        for line in getattr(task, "data_problems", []):
            yield f"{of}left out: {line}"
        for line in getattr(task, "notes", []):
            yield f"{of}{line}"
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
            numbers = task.numbers if hasattr(task, "numbers") else task.spread
            yield of + count_of(what, [numbers[one] for one in sorted(items)], wanted)
    if missing:
        of = f"{len(missing)} of its {len(missing) + len(tasks)} tasks"
        yield f"{of} are not in it; {missing[0].task_name}: {missing[0].reason}"


def _begin_anew() -> None:
    """Seed the global generators as the harness does at the start of an evaluation: some tasks shuffle the choices of
    their items by them. Each benchmark begins anew, so that its figures do not depend on those asked before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)


@contextmanager
def _quiet() -> Generator[None]:
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
