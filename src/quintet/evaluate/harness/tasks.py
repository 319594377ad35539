"""Tasks of the harness that an evaluation survives when an item is broken or a file is missing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quintet.errors import one_line
from quintet.evaluate.harness.items import (
    LocalItems,
    NotReachable,
    as_dataset,
    is_short_and_plain,
    local_items,
    some_of,
)
from quintet.evaluate.harness.library import (
    ConfigurableTask,
    ContextSampler,
    FirstNSampler,
    Task,
    TaskManager,
    find_tasks,
    is_python_task,
    library_task,
    mean,
)
from quintet.evaluate.harness.names import ALIASES, is_short, items_of
from quintet.evaluate.harness.scoring import confidence
from quintet.libraries import require

_SEED = 1234  # of the examples, as in the harness
_EXTRA = ("acc_norm", "probability", "probability_norm", "margin", "margin_norm")


@dataclass(frozen=True)
class TaskOptions:
    """How benchmarks are asked: ``samples`` items of each (None: all), ``shots`` examples in front of an item (None: as
    many as the task says), and items from files in ``data_dir`` instead of the hub."""

    samples: int | None
    shots: int | None
    data_dir: Path | None


@dataclass(frozen=True)
class MissingTask:
    """A task that cannot be asked, and the ``reason``; "" if its share of the items is none."""

    task_name: str
    reason: str


def load(name: str, options: TaskOptions) -> list[Task | MissingTask]:
    """Return the tasks of the benchmark ``name``, a task, group or tag, with ``samples`` items together.

    A number after the name, as in "blimp:100", replaces ``samples``. Raises NotReachable for a name that the harness
    does not have.
    """
    name, count = items_of(name)
    manager, configs = find_tasks(ALIASES.get(name, name))
    parts, samples = len(configs), count or options.samples
    tasks: list[Task | MissingTask] = []
    for part, config in enumerate(configs):
        share = None if samples is None else (part + 1) * samples // parts - part * samples // parts
        task = MissingTask(config["task"], "") if share == 0 else _build(manager, config, options, share, name)
        tasks.append(task)
    return tasks


def _build(
    manager: TaskManager, config: dict[str, Any], options: TaskOptions, samples: int | None, name: str
) -> Task | MissingTask:
    """Build the task of ``config``, with ``samples`` items, for the benchmark ``name``."""
    try:
        if is_python_task(manager, config["task"]):
            if options.data_dir is not None:
                raise NotReachable("it is written in Python and loads its data by itself, not from files")
            task: Task = _python_task(library_task(manager, config["task"]), options.shots, samples)
        else:
            task = CheckedTask(config, options, samples, is_short(name))
    except Exception as error:  # the code of a task, of `datasets` and of the hub may raise anything
        return MissingTask(config["task"], _reason(error))
    task.set_fewshot_seed(seed=_SEED)
    return task


def _python_task(task: Any, shots: int | None, samples: int | None) -> Any:
    """Return ``task``, which is written in Python and makes its prompts by itself, with ``samples`` items.

    Raises NotReachable if ``shots`` differs from its own number of examples.
    """
    own = task.get_config("num_fewshot") or 0
    if shots not in (None, own):
        raise NotReachable(f"it is written in Python and has {own} examples of its own; leave their number out")
    task.set_config("num_fewshot", own)
    task.spread = spread(len(task.eval_docs), samples)
    return task


def spread(count: int, wanted: int | None) -> list[int]:
    """Return ``wanted`` of the numbers below ``count``, evenly spread; all if there are fewer, or for None."""
    asked = min(count, wanted or count)
    return (np.arange(asked) * count // max(asked, 1)).tolist()


class CheckedTask(ConfigurableTask):
    """A task of the harness with ``samples`` items, spread evenly, or only its ``short`` and plain items.

    Items that cannot be asked are dropped; ``problems`` holds their numbers by what is wrong with them, and ``numbers``
    those of the items that are asked. ``wanted`` counts both. ``data_problems`` are lines on records that cannot be
    read, ``notes`` lines on what differs from the task's own rules.
    """

    def __init__(self, config: dict[str, Any], options: TaskOptions, samples: int | None, short: bool) -> None:
        self._options, self._samples, self._short = options, samples, short
        self._local: LocalItems | None = None
        self._chosen: Any = None
        self._next: Iterator[int] = iter(())
        self.problems: dict[str, list[int]] = {}
        self.data_problems: list[str] = []
        self.notes: list[str] = []
        self.numbers: list[int] = []
        self.wanted = 0
        super().__init__(config={**config, "num_fewshot": self._shots(config)})
        if hasattr(self, "sampler"):
            same_split = self.fewshot_cfg.split == self.config.test_split  # the harness's rule to exclude the item
            self.sampler = _Examples(self.sampler, self._docs if same_split or self._other_items else None)
            if self._local is not None and self._other_items:
                self.notes.append(f"the examples are other items of its file, for there is no {self._local.shots_file}")

    def _shots(self, config: Mapping[str, Any]) -> int:
        """Return the number of examples in front of an item. Raises NotReachable if the task takes none."""
        own: int | None = config.get("num_fewshot")
        wanted = self._options.shots
        if wanted and config.get("output_type") == "loglikelihood_rolling":
            raise NotReachable("it measures whole texts and takes no examples; leave their number out")
        if wanted and own == 0:  # as in the harness, 0 is a task's own rule and stays
            self.notes.append(f"asked without examples, not after {wanted}, for its own rule is num_fewshot: 0")
            return 0
        return (own or 0) if wanted is None else wanted

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Load the items, from the hub or from a file."""
        if self._options.data_dir is None:
            super().download(deepcopy(dataset_kwargs), **kwargs)
            return
        config = self.config
        part = config.dataset_name or (config.dataset_kwargs or {}).get("name")
        folder, split = self._options.data_dir, self._shots_split
        self._local = local_items(folder, config.task or "", config.dataset_path or "", part, split)
        self.data_problems += self._local.problems
        self.dataset = {self._split: as_dataset(self._local.records, self.data_problems)}
        if split is not None and self._local.shots:
            self.dataset[split] = as_dataset(self._local.shots, self.data_problems)

    @property
    def eval_docs(self) -> Any:
        """The items that are asked, a ``datasets.Dataset``."""
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    @cached_property
    def _docs(self) -> Any:
        """All items, a ``datasets.Dataset``."""
        docs = self._processed(self.dataset[self._split])
        self.features = list(docs.features.keys())
        return docs

    def fewshot_docs(self) -> Any:
        """Return the examples that may precede an item; None if the task uses none.

        They are the task's own samples, the items of its split for examples, or the other items, if a file takes the
        place of the hub and has no such split. Raises NotReachable if there are too few.
        """
        wanted = self.config.num_fewshot
        if not wanted:
            return None
        if self._other_items:
            examples: list[Any] = [doc for doc in self._docs if self._problem(doc) is None]
        elif self._own_samples:
            samples = self.fewshot_cfg.samples
            own: Any = samples() if callable(samples) else samples
            examples = list(own or ())
        else:
            examples = list(super().fewshot_docs() or ())
        count = len(examples) - self._other_items
        if count < wanted and self._other_items and self._options.shots is None:
            self.notes.append(
                f"asked after {count} examples, not after its own {wanted}, for its file has no more items"
            )
            self.set_config("num_fewshot", count)
            return examples if count else None
        if count < wanted:
            raise NotReachable(f"it asks for {wanted} examples in front of an item and has {count}")
        return examples

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests of the items that are asked."""
        self._next = iter(self.numbers)
        super().build_all_requests(**kwargs)

    def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the prompt of an item, with the examples that it has when all items are asked."""
        number = next(self._next)
        if self.config.num_fewshot:
            assert isinstance(self.sampler, _Examples)
            self.sampler.go_to(number, self.config.num_fewshot)
        return super().fewshot_context(doc, *args, **kwargs)

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """Return the harness's figures of an item, and those of `confidence`."""
        figures = super().process_results(doc, results)
        if not self._multiple_choice:
            return figures
        choices: list[str] = self.doc_to_choice(doc)
        logprobs = [logprob for logprob, _ in results[: len(choices)]]
        # Choices that are contexts all have the same continuation, so that no length divides their log-probabilities.
        lengths = [1] * len(choices) if self.multiple_input else list(map(len, choices))
        return confidence(logprobs, lengths, self._right(doc, choices)) | figures

    def aggregation(self) -> dict[str, Any]:
        """Return the function that aggregates each figure over the items, by the figure's name."""
        return (dict.fromkeys(_EXTRA, mean) if self._multiple_choice else {}) | super().aggregation()

    def higher_is_better(self) -> dict[str, bool]:
        """Return for each figure whether more is better."""
        return (dict.fromkeys(_EXTRA, True) if self._multiple_choice else {}) | super().higher_is_better()

    @property
    def _multiple_choice(self) -> bool:
        return self.OUTPUT_TYPE == "multiple_choice" and not callable(self.config.process_results)

    @property
    def _split(self) -> str:
        split = self.config.test_split or self.config.validation_split
        if split is None:
            raise NotReachable("it has neither a validation split nor a test split")
        return split

    @property
    def _own_samples(self) -> bool:
        """True if the task's YAML file holds the examples."""
        return self.fewshot_cfg.samples is not None and self.fewshot_cfg.split is None

    @property
    def _shots_split(self) -> str | None:
        """The split of the examples, by the harness's rule; None if it is that of the items."""
        config = self.config
        named = self.fewshot_cfg.split or config.training_split or config.validation_split
        return None if named == self._split else named

    @property
    def _other_items(self) -> bool:
        """True if the examples are other items, because a file of items comes without a file of examples."""
        return self._local is not None and not self._local.shots and not self._own_samples

    def _choose(self) -> Any:
        docs = self._docs
        numbers = list(range(len(docs)))
        if self._short:
            numbers = [number for number in numbers if self._is_short(docs[number])]
        asked = [numbers[index] for index in spread(len(numbers), self._samples)]
        self.wanted, self.numbers = len(asked), []
        for number in asked:
            problem = self._problem(docs[number])
            if problem is None:
                self.numbers.append(number)
            else:
                self.problems.setdefault(problem, []).append(number)
        if not self.numbers:
            reasons = [f"{len(numbers)} {problem}" for problem, numbers in self.problems.items()]
            reasons += [some_of(self.data_problems)] if self.data_problems else []
            reason = "; ".join(reasons) or "none is short and plain"
            raise NotReachable(f"none of {len(docs)} items can be asked ({reason})")
        return docs.select(self.numbers)

    def _processed(self, docs: Any) -> Any:
        """Return the items as the task's own code reshapes them, without those that it cannot reshape."""
        process = self.config.process_docs
        if process is None:
            return docs
        try:
            return process(docs)
        except Exception:  # the task's own code may raise anything; reshape item by item to find which one fails
            kept: list[Any] = []
            for number in range(len(docs)):
                try:
                    kept.append(process(docs.select([number])))
                except Exception as error:
                    self.problems.setdefault(f"are not of the task's form ({_reason(error)})", []).append(number)
            if not kept:
                raise
            datasets = require("datasets", "eval", "a benchmark")
            return datasets.concatenate_datasets(kept)

    def _problem(self, doc: Any) -> str | None:
        """Return what is wrong with an item; None if it can be asked."""
        try:
            self.doc_to_text(doc)
            target = self.doc_to_target(doc)
            choices: list[Any] = self.doc_to_choice(doc) if self.OUTPUT_TYPE == "multiple_choice" else []
            right = self._right(doc, choices) if choices else [0]
        except Exception as error:  # the task's own code may raise anything on an item of another form
            return f"left out: not of the task's form ({_reason(error)})"
        if self.OUTPUT_TYPE == "multiple_choice":
            if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
                return "left out: a choice is empty"
            if not right or not all(0 <= number < len(choices) for number in right):
                return "left out: no right answer"
        elif target is None:
            return "left out: no right answer"
        return None

    def _right(self, doc: Any, choices: Sequence[str]) -> list[int]:
        """Return the numbers of the right choices; none if the item does not name any."""
        text = self.doc_to_text(doc)
        gold = text if isinstance(text, int) else self.doc_to_target(doc)
        if isinstance(gold, str):
            if gold.isdecimal() and gold not in choices:
                gold = int(gold)
            else:
                return [choices.index(gold)] if gold in choices else []
        return [gold] if isinstance(gold, int) else list(gold or [])

    def _is_short(self, doc: Any) -> bool:
        with suppress(Exception):  # `_problem` finds and reports an item that cannot be asked
            choices: list[str] = self.doc_to_choice(doc)
            text = self.doc_to_text(doc)
            if isinstance(text, int):
                return is_short_and_plain(str(self.doc_to_target(doc)), choices)
            return is_short_and_plain(str(doc.get("question", text)), choices)
        return True


class _Examples(ContextSampler):
    """Draws the examples of an item by ``inner``, the task's sampler, as if all items were asked in turn, so that they
    do not depend on how many are asked. An item is excluded from its own examples if ``items`` holds all items."""

    def __init__(self, inner: ContextSampler, items: Any) -> None:
        super().__init__(inner.df)
        self._inner, self._items = inner, items
        self._current = self._next = 0  # the item to draw for, and the first item that nothing was drawn for
        self._in_turn = not isinstance(inner, FirstNSampler)  # which draws nothing
        self.set_rnd(_SEED)

    def set_rnd(self, rnd: int | None) -> ContextSampler:
        """Start again with the seed ``rnd``."""
        self._seed, self._next = rnd, 0
        self._inner.set_rnd(rnd)
        return self

    def go_to(self, number: int, shots: int) -> None:
        """Draw the ``shots`` examples of the items before item ``number``, so that its own come next."""
        if number < self._next:
            self.set_rnd(self._seed)
        for skipped in range(self._next, number if self._in_turn else 0):
            self._sample(skipped, shots)
        self._current = self._next = number

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any:
        """Return the examples of the item that `go_to` was called with."""
        self._next = self._current + 1
        return self._sample(self._current, n)

    def _sample(self, number: int, n: int) -> Any:
        return self._inner.sample(n, eval_doc=None if self._items is None else self._items[number])


def _reason(error: Exception) -> str:
    if isinstance(error, NotReachable):
        return one_line(error, lines=1)
    return one_line(error, lines=1, typed=True)[:200]
