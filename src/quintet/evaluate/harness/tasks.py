"""Tasks of the harness, built so that a broken item or a missing file does not end the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.samplers import ContextSampler, FirstNSampler
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from quintet.errors import one_line
from quintet.evaluate.harness.figures import confidence
from quintet.evaluate.harness.items import (
    LocalItems,
    NotReachable,
    as_dataset,
    is_short_and_plain,
    local_items,
    some_of,
)
from quintet.evaluate.harness.library import find_tasks, library_task, written_in_python
from quintet.evaluate.harness.names import ALIASES, is_short, items_of

_SEED = 1234  # the harness's, of the examples
_EXTRA = ("acc_norm", "probability", "probability_norm", "margin", "margin_norm")


@dataclass(frozen=True)
class TaskOptions:
    """The way in which benchmarks are asked: ``samples`` items of each (None: all), ``shots`` examples in front of an
    item (None: as many as the task says), and files in ``data_dir`` instead of the hub."""

    samples: int | None
    shots: int | None
    data_dir: Path | None


@dataclass(frozen=True)
class MissingTask:
    """A task whose data are not there."""

    task_name: str
    reason: str


def load(name: str, options: TaskOptions) -> list[Task | MissingTask]:
    """The tasks that ``name`` stands for, one or those of a group or a tag, with ``samples`` items together.

    A number after the name, as in "blimp:100", stands for ``samples``. Raises NotReachable for a name that the harness
    does not have.
    """
    name, own = items_of(name)
    manager, configs = find_tasks(ALIASES.get(name, name))
    parts, samples = len(configs), own or options.samples
    found: list[Task | MissingTask] = []
    for part, config in enumerate(configs):
        share = None if samples is None else (part + 1) * samples // parts - part * samples // parts
        found.append(MissingTask(config["task"], "") if share == 0 else _built(manager, config, options, share, name))
    return found


def _built(
    manager: TaskManager, config: dict[str, Any], options: TaskOptions, samples: int | None, name: str
) -> Task | MissingTask:
    """The task of ``config``, of which ``samples`` items are asked for the benchmark ``name``."""
    try:
        if written_in_python(manager, config["task"]):
            if options.data_dir is not None:
                raise NotReachable("it is written in Python and loads its data by itself, not from files")
            task = _as_it_is(library_task(manager, config["task"]), options.shots, samples)
        else:
            task = CheckedTask(config, options, samples, is_short(name))
    except Exception as error:  # the code of a task, of `datasets` and of the hub fails in ways of its own
        return MissingTask(config["task"], _reason(error))
    task.set_fewshot_seed(seed=_SEED)
    return task


def _as_it_is(task: Any, shots: int | None, samples: int | None) -> Any:
    """A ``task`` written in Python, of which ``samples`` items are to be asked: it makes its prompts by itself.

    Raises NotReachable where other ``shots`` are asked for than its own.
    """
    own = task.get_config("num_fewshot") or 0
    if shots not in (None, own):
        raise NotReachable(f"it is written in Python and has {own} examples of its own; leave their number out")
    task.set_config("num_fewshot", own)
    task.spread = spread(len(task.eval_docs), samples)
    return task


def spread(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of the numbers below ``count``, evenly; all where there are fewer, or for None."""
    asked = min(count, wanted or count)
    return (np.arange(asked) * count // max(asked, 1)).tolist()


class CheckedTask(ConfigurableTask):
    """A task of the harness of which ``samples`` items are asked, spread evenly; those that cannot be asked are left
    out, and ``problems`` has their numbers by what is wrong. With ``short`` only short and plain items count."""

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
            everyone = self.fewshot_cfg.split == self.config.test_split  # the harness's rule for leaving the item out
            self.sampler = _Examples(self.sampler, self._docs if everyone or self._other_items else None)
            if self._local is not None and self._other_items:
                self.notes.append(f"the examples are other items of its file, for there is no {self._local.shots_file}")

    def _shots(self, config: Mapping[str, Any]) -> int:
        """The number of examples in front of an item. Raises NotReachable where the task has no place for them."""
        own, wanted = config.get("num_fewshot"), self._options.shots
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
        """The items that are asked."""
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    @cached_property
    def _docs(self) -> Any:
        """All items, of which some are asked."""
        docs = self._processed(self.dataset[self._split])
        self.features = list(docs.features.keys())
        return docs

    def fewshot_docs(self) -> Any:
        """The examples that may stand in front of an item: the task's own, those of its split for them, or with a file
        that has no such split the other items, as many as there are; None where there are to be none. Raises
        NotReachable for too few."""
        if not self.config.num_fewshot:
            return None
        if self._other_items:
            found = [doc for doc in self._docs if self._trouble(doc) is None]
        elif self._own_samples:
            samples = self.fewshot_cfg.samples
            found = list((samples() if callable(samples) else samples) or ())
        else:
            found = list(super().fewshot_docs() or ())
        count = len(found) - self._other_items
        if count < self.config.num_fewshot and self._other_items and self._options.shots is None:
            own = self.config.num_fewshot
            self.notes.append(f"asked after {count} examples, not after its own {own}, for its file has no more items")
            self.set_config("num_fewshot", count)
            return found if count else None
        if count < self.config.num_fewshot:
            raise NotReachable(f"it asks for {self.config.num_fewshot} examples in front of an item and has {count}")
        return found

    def build_all_requests(self, **kwargs: Any) -> None:
        """The requests of all items that are asked, as the harness makes them."""
        self._next = iter(self.numbers)
        super().build_all_requests(**kwargs)

    def fewshot_context(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
        """The prompt of an item: its examples are those that it has when all items are asked."""
        number = next(self._next)
        if self.config.num_fewshot:
            assert isinstance(self.sampler, _Examples)
            self.sampler.go_to(number, self.config.num_fewshot)
        return super().fewshot_context(doc, *args, **kwargs)

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """The harness's figures of an item, and how sure the model is of the right choice."""
        found = super().process_results(doc, results)
        if not self._multiple_choice:
            return found
        choices = self.doc_to_choice(doc)
        logprobs = [logprob for logprob, _ in results[: len(choices)]]
        # Where the choices are contexts all have the same end, so that there is nothing to normalise by.
        lengths = [1] * len(choices) if self.multiple_input else list(map(len, choices))
        return confidence(logprobs, lengths, self._right(doc, choices)) | found

    def aggregation(self) -> dict[str, Any]:
        """The function that makes one figure of those of the items, by name."""
        return (dict.fromkeys(_EXTRA, mean) if self._multiple_choice else {}) | super().aggregation()

    def higher_is_better(self) -> dict[str, bool]:
        """True for each figure of which more is better."""
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
        """True where the task's file holds the examples."""
        return self.fewshot_cfg.samples is not None and self.fewshot_cfg.split is None

    @property
    def _shots_split(self) -> str | None:
        """The split that has the examples, by the harness's rule; None where it is the items' own."""
        config = self.config
        named = self.fewshot_cfg.split or config.training_split or config.validation_split
        return None if named == self._split else named

    @property
    def _other_items(self) -> bool:
        """True where examples come from the items themselves, as a file without others has it."""
        return self._local is not None and not self._local.shots and not self._own_samples

    def _choose(self) -> Any:
        docs = self._docs
        numbers = list(range(len(docs)))
        if self._short:
            numbers = [number for number in numbers if self._is_short(docs[number])]
        asked = [numbers[index] for index in spread(len(numbers), self._samples)]
        self.wanted, self.numbers = len(asked), []
        for number in asked:
            trouble = self._trouble(docs[number])
            if trouble is None:
                self.numbers.append(number)
            else:
                self.problems.setdefault(trouble, []).append(number)
        if not self.numbers:
            reasons = [f"{len(found)} {what}" for what, found in self.problems.items()]
            reasons += [some_of(self.data_problems)] if self.data_problems else []
            said = "; ".join(reasons) or "none is short and plain"
            raise NotReachable(f"none of {len(docs)} items can be asked ({said})")
        return docs.select(self.numbers)

    def _processed(self, docs: Any) -> Any:
        """The items as the task reshapes them; those that it cannot reshape are left out."""
        process = self.config.process_docs
        if process is None:
            return docs
        try:
            return process(docs)
        except Exception:  # the task's own code; then each item alone, to see whose fault it is
            import datasets

            kept = []
            for number in range(len(docs)):
                try:
                    kept.append(process(docs.select([number])))
                except Exception as error:
                    self.problems.setdefault(f"are not of the task's form ({_reason(error)})", []).append(number)
            if not kept:
                raise
            return datasets.concatenate_datasets(kept)

    def _trouble(self, doc: Any) -> str | None:
        """The fault of an item, None if it can be asked."""
        try:
            self.doc_to_text(doc)
            target = self.doc_to_target(doc)
            choices = self.doc_to_choice(doc) if self.OUTPUT_TYPE == "multiple_choice" else []
            right = self._right(doc, choices) if choices else [0]
        except Exception as error:  # the task's own code on an item that it was not made for
            return f"left out: not of the task's form ({_reason(error)})"
        if self.OUTPUT_TYPE == "multiple_choice":
            if len(choices) < 2 or not all(isinstance(one, str) and one.strip() for one in choices):
                return "left out: a choice is empty"
            if not right or not all(0 <= one < len(choices) for one in right):
                return "left out: no right answer"
        elif target is None:
            return "left out: no right answer"
        return None

    def _right(self, doc: Any, choices: Sequence[str]) -> list[int]:
        """The numbers of the right choices; none where the item does not say."""
        text = self.doc_to_text(doc)
        gold = text if isinstance(text, int) else self.doc_to_target(doc)
        if isinstance(gold, str):
            if gold.isdecimal() and gold not in choices:
                gold = int(gold)
            else:
                return [choices.index(gold)] if gold in choices else []
        return [gold] if isinstance(gold, int) else list(gold or [])

    def _is_short(self, doc: Any) -> bool:
        with suppress(Exception):  # an item that cannot be asked is found later, and named
            choices = self.doc_to_choice(doc)
            text = self.doc_to_text(doc)
            if isinstance(text, int):
                return is_short_and_plain(str(self.doc_to_target(doc)), choices)
            return is_short_and_plain(str(doc.get("question", text)), choices)
        return True


class _Examples(ContextSampler):
    """Draws the examples of an item with ``inner``, the task's sampler, as they are when all items are asked in turn,
    so that they do not depend on how many are. An item is none of its own examples where ``items`` has them all."""

    def __init__(self, inner: ContextSampler, items: Any) -> None:
        super().__init__(inner.df)
        self._inner, self._items, self._asked, self._drawn = inner, items, 0, 0
        self._in_turn = not isinstance(inner, FirstNSampler)  # which draws nothing
        self.set_rnd(_SEED)

    def set_rnd(self, rnd: int | None) -> ContextSampler:
        """Begin anew with the seed ``rnd``."""
        self._seed, self._drawn = rnd, 0
        self._inner.set_rnd(rnd)
        return self

    def go_to(self, number: int, shots: int) -> None:
        """Be ready for the item ``number``, before each of which ``shots`` examples stand."""
        if number < self._drawn:
            self.set_rnd(self._seed)
        for skipped in range(self._drawn, number if self._in_turn else 0):
            self._sample(skipped, shots)
        self._asked, self._drawn = number, number

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any:
        """The examples of the item that `go_to` was called with."""
        self._drawn = self._asked + 1
        return self._sample(self._asked, n)

    def _sample(self, number: int, n: int) -> Any:
        return self._inner.sample(n, eval_doc=None if self._items is None else self._items[number])


def _reason(error: Exception) -> str:
    if isinstance(error, NotReachable):
        return one_line(error, lines=1)
    return one_line(error, lines=1, typed=True)[:200]
