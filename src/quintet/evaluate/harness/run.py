"""Benchmarks of lm-evaluation-harness on a model: asking it the items, and the figures that are reported."""

from __future__ import annotations

import io
import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quintet.config.names import local_path
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.scoring import Limit, Unscored
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer

if TYPE_CHECKING:
    from quintet.evaluate.harness.model import HarnessModel
    from quintet.evaluate.harness.tasks import MissingTask, TaskOptions

_RESAMPLES = 1000  # of the bootstrap, for the standard error of a figure that is not a mean
_SLOW = ("bleu", "chrf", "chrf++", "ter")
_SLOW_RESAMPLES = 100  # for the figures above, as in the harness
_NAMED = 5  # items that a warning names by number
_Values = dict[tuple[str, str], list[Any]]


@dataclass(frozen=True)
class Figure:
    """A figure over ``items`` items, each asked after ``shots`` examples, and its standard error; NaN if it has
    none."""

    value: float
    error: float
    items: int
    shots: int


@dataclass(frozen=True)
class Benchmark:
    """The figures of one benchmark over ``items`` items of ``parts`` tasks; ``warnings`` say what is not in them. A
    figure of only one of several tasks is named ``<task>/<figure>``."""

    figures: Mapping[str, Figure]
    items: int
    parts: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks that were measured in ``precision``, by the name that the user gave, and why the others were
    not."""

    precision: str
    measured: Mapping[str, Benchmark] = field(default_factory=dict[str, Benchmark])
    missing: Mapping[str, str] = field(default_factory=dict[str, str])

    def metrics(self) -> dict[str, float]:
        """Return the figures by the names that trackers show: ``benchmark/<task>/acc``, ``…/acc_stderr``, ``…/items``,
        ``…/shots``, and 1 as ``…/precision_fp32`` or another precision."""
        metrics: dict[str, float] = {}
        for name, benchmark in self.measured.items():
            for metric, figure in benchmark.figures.items():
                row, _, last = f"benchmark/{name}/{metric}".rpartition("/")
                metrics[f"{row}/{last}"] = figure.value
                if not math.isnan(figure.error):
                    metrics[f"{row}/{last}_stderr"] = figure.error
                metrics[f"{row}/items"] = max(figure.items, metrics.get(f"{row}/items", 0))
                metrics[f"{row}/shots"] = figure.shots
                metrics[f"{row}/precision_{self.precision}"] = 1
        return metrics

    def lines(self) -> list[str]:
        """Return a line for each figure and for each warning."""
        rows = [
            (
                name,
                metric,
                f"{figure.value:.4f}",
                "" if math.isnan(figure.error) else f"± {figure.error:.4f}",
                f"{figure.shots}-shot",
                f"{self.precision}, of {figure.items:,}",
            )
            for name, benchmark in self.measured.items()
            for metric, figure in benchmark.figures.items()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"  {name:{widths[0]}}  {metric:{widths[1]}}  {value:>{widths[2]}} {error:{widths[3]}}  "
            f"{shots:>{widths[4]}} in {rest}"
            for name, metric, value, error, shots, rest in rows
        ]
        return [*lines, *self.warnings()]

    def warnings(self) -> list[str]:
        """Return a line for everything that is not in the figures."""
        lines = [f"{name}: {line}" for name, benchmark in self.measured.items() for line in benchmark.warnings]
        return [*lines, *(f"{name}: not measured: {reason}" for name, reason in self.missing.items())]

    def figures(self) -> dict[str, Any]:
        """Return everything for JSON, with None for NaN and infinity."""
        tasks = {
            name: {
                "items": benchmark.items,
                "parts": benchmark.parts,
                "warnings": list(benchmark.warnings),
                "figures": {metric: self._as_json(figure) for metric, figure in benchmark.figures.items()},
            }
            for name, benchmark in self.measured.items()
        }
        return {"precision": self.precision, "tasks": tasks, "not_measured": dict(self.missing)}

    def _as_json(self, figure: Figure) -> dict[str, Any]:
        value, error = (number if math.isfinite(number) else None for number in (figure.value, figure.error))
        counts = {"items": figure.items, "shots": figure.shots, "precision": self.precision}
        return {"value": value, "stderr": error, **counts}


@dataclass(frozen=True)
class EvalOptions:
    """The benchmarks to measure: ``tasks`` by name, ``samples`` items of each (None: all), ``shots`` examples in front
    of an item (None: as many as the task says), ``data_dir`` with files instead of the hub, and at most ``batch_size``
    texts as long as the context in one forward pass."""

    tasks: tuple[str, ...]
    samples: int | None = 1000
    shots: int | None = None
    data_dir: str | None = None
    batch_size: int = 16


def run_benchmarks(language_model: ModelAndTokenizer, options: EvalOptions) -> Benchmarks:
    """Measure ``language_model`` on each benchmark; one that cannot be measured is in the result with the reason.

    The state of the global random generators is kept.
    """
    from quintet.evaluate.harness.model import HarnessModel

    return _measure_all(HarnessModel(language_model, _limit(language_model, options)), options)


def try_benchmarks(language_model: ModelAndTokenizer, options: EvalOptions) -> None:
    """Encode the items of each benchmark, unless the tokenizer can encode every text. Raises UserError for an item that
    it cannot encode; other problems are reported when the benchmark is measured."""
    if {bytes([byte]) for byte in range(256)} <= set(language_model.tokenizer.pieces.table):
        return
    from quintet.evaluate.harness.model import TrialModel

    _measure_all(TrialModel(language_model, _limit(language_model, options)), options)


def _limit(language_model: ModelAndTokenizer, options: EvalOptions) -> Limit:
    length = language_model.model.context_length
    return Limit(options.batch_size * length, length)


def _measure_all(model: HarnessModel, options: EvalOptions) -> Benchmarks:
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

    _seed_generators()
    loaded = load(name, task_options)
    tasks: dict[str, Any] = {task.task_name: task for task in loaded if not isinstance(task, MissingTask)}
    missing = [task for task in loaded if isinstance(task, MissingTask) and task.reason]
    if not tasks:
        raise NotReachable(missing[0].reason if missing else "it has no items")
    for task in tasks.values():
        _drop_unscored(task)
    model.cut.clear()
    model.unscored.clear()
    try:
        # A CheckedTask chooses its items by itself.
        results = ask(model, tasks, {name: task.spread for name, task in tasks.items() if hasattr(task, "spread")})
        values = {task: _values(results["samples"][task]) for task in tasks}
        figures, others = _figures(values, {task: int(results["n-shot"][task] or 0) for task in tasks}, tasks)
    except Exception as error:  # a task's own code may fail on an answer; an error of the model is raised
        if model.failure is not None:
            raise
        raise NotReachable(f"{type(error).__name__}: {error}") from error
    items = sum(max(map(len, own.values()), default=0) for own in values.values())
    warnings = [*_warnings(tasks, missing, model), *(f"{other} is no number" for other in others)]
    if not items:
        raise NotReachable(f"no item has a figure ({'; '.join(warnings)})")
    return Benchmark(figures, items, len(tasks), tuple(warnings))


def _drop_unscored(task: Any) -> None:
    """Make ``task`` give no figures for an item with an `Unscored` answer."""
    figures_of = task.process_results

    def process_results(doc: Any, results: Any) -> dict[str, Any]:
        return {} if any(isinstance(result, Unscored) for result in results) else figures_of(doc, results)

    task.process_results = process_results


def _figures(
    values: Mapping[str, _Values], shots: Mapping[str, int], tasks: Mapping[str, Any]
) -> tuple[dict[str, Figure], list[str]]:
    """Return the figures of ``tasks`` from the ``values`` of their items, and the names of figures that are no numbers.

    A figure that all tasks have, aggregate by the same rule and ask after the same number of examples is aggregated
    over all their items. Any other is a figure of each task that has it.
    """
    from quintet.evaluate.harness.library import mean

    keys = dict.fromkeys(key for own in values.values() for key in own)
    figures: dict[str, Figure] = {}
    others: list[str] = []
    for metric, filtered in sorted(keys):
        having = [task for task in tasks if (metric, filtered) in values[task]]
        rules = {task: tasks[task].aggregation().get(metric, mean) for task in having}
        alike = len(set(map(_identity, rules.values()))) == 1 == len(set(shots.values()))
        together = alike and len(having) == len(tasks)
        name = metric if filtered == "none" else f"{metric}/{filtered}"
        for group in [having] if together else [[task] for task in having]:
            of_items = [value for task in group for value in values[task][metric, filtered]]
            figure = _figure(metric, rules[group[0]], of_items, shots[group[0]])
            full_name = name if together else f"{group[0]}/{name}"
            if figure is None:
                others.append(full_name)
            else:
                figures[full_name] = figure
    return figures, others


def _values(samples: Sequence[Mapping[str, Any]]) -> _Values:
    """Return the value of each item, by figure and filter."""
    values: _Values = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            values[metric, sample["filter"]].append(sample[metric])
    return values


def _figure(metric: str, aggregate: Callable[[Sequence[Any]], Any], values: list[Any], shots: int) -> Figure | None:
    """Return the figure of ``values``, one per item, with the harness's standard error; None if it is no number."""
    from quintet.evaluate.harness.library import stderr_for_metric

    value = aggregate(values)
    if not isinstance(value, Real):
        return None
    error_of = stderr_for_metric(aggregate, _SLOW_RESAMPLES if metric in _SLOW else _RESAMPLES)
    error = error_of(values) if error_of is not None and len(values) > 1 else math.nan
    return Figure(float(value), float(error), len(values), shots)


def _identity(aggregate: Any) -> tuple[str, ...]:
    """Return what identifies a rule of aggregation, which each task may have imported as an object of its own."""
    inner = getattr(aggregate, "func", aggregate)  # of functools.partial
    settings = (getattr(aggregate, "args", ()), getattr(aggregate, "keywords", {}))
    return getattr(inner, "__module__", ""), getattr(inner, "__qualname__", repr(inner)), repr(settings)


def _warnings(tasks: dict[str, Any], missing: list[MissingTask], model: HarnessModel) -> Iterator[str]:
    for name, task in tasks.items():
        of = f"{name}: " if len(tasks) > 1 else ""
        wanted = getattr(task, "wanted", len({instance.doc_id for instance in task.instances}))
        for line in getattr(task, "data_problems", []):
            yield f"{of}left out: {line}"
        for line in getattr(task, "notes", []):
            yield f"{of}{line}"
        for what, numbers in getattr(task, "problems", {}).items():
            yield of + count_of(what, numbers, wanted)
        unscored = model.unscored.get(name, {})
        items_by_warning = {f"left out: {problem}": items for problem, items in unscored.items()}
        if cut := model.cut.get(name, set[int]()).difference(*unscored.values()):
            length = model.encoder.context_length
            items_by_warning[f"longer than the context of {length} tokens, read without their beginning"] = cut
        for what, items in items_by_warning.items():
            numbers = task.numbers if hasattr(task, "numbers") else task.spread
            yield of + count_of(what, [numbers[item] for item in sorted(items)], wanted)
    if missing:
        of = f"{len(missing)} of its {len(missing) + len(tasks)} tasks"
        yield f"{of} are not in it; {missing[0].task_name}: {missing[0].reason}"


def count_of(what: str, items: Sequence[int], total: int) -> str:
    """Return a warning about ``items`` of ``total``, the first of which it names by number."""
    numbers = ", ".join(map(str, items[:_NAMED])) + (", …" if len(items) > _NAMED else "")
    return f"{len(items):,} of {total:,} items {what} (number {numbers})"


def _seed_generators() -> None:
    """Seed the global generators as the harness does at its start, because some tasks shuffle their choices by them.
    Each benchmark starts from the same seeds, so that its figures do not depend on those before it."""
    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)


@contextmanager
def _quiet() -> Generator[None]:
    """Within, hide the progress bars and log lines of the harness and of `datasets`; restore the global random
    generators on exit."""
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
