"""Mistakes planted in correct run files, and the problems that Quintet reports of a file."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.dialects.small_files import SmallFile

from quintet import api
from quintet.config.keypath import KeyPath, show, walk
from quintet.config.load import Refused
from quintet.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "examples"
NATIVE = ("quickstart.yaml", "masked.yaml", "measured.yaml")
MISSPELT, TYPE, RANGE, PATH, ACROSS = "misspelt", "type", "range", "path", "across"
# By file: values that contradict other keys or that a library refuses, and the keys that they contradict.
ACROSS_KEYS: dict[str, dict[str, tuple[Any, tuple[str, ...]]]] = {
    "phyagi": {"model.n_head": (7, ("model",))},
    "vectorlm": {"train_parameters.use_flash_attention": (True, ("train_parameters",))},
    "stlm": {
        "model.attn.group_size": (3, ("model.attn",)),
        "trainer.dataset": ("the_pile", ()),
        "trainer.optimizer.optimizer_name": ("lbfgs", ("trainer.optimizer",)),
    },
    "tmrc": {"model.n_head": (7, ("model",)), "tokenizer.name": ("another", ())},
    "piano": {"command": ("tune", ()), "model.n_head": (7, ("model",))},
    "quickstart.yaml": {
        "model.attention.heads": (7, ("model.width", "model.attention", "model.kind")),
        "schedule.min_lr": (5.0, ("schedule", "optimizer")),
        "optimizer.kind": ("torch", ("optimizer", "schedule")),
        "evaluate.tasks": (["no such task"], ("evaluate",)),
        "model.context_length": (16, ("data", "model.kind")),
    },
    "masked.yaml": {"evaluate.text_modeling": ({}, ("evaluate", "loss", "model"))},
    "measured.yaml": {"evaluate.best_by": ("x", ("evaluate", "data"))},
}


@dataclass(frozen=True)
class Mistake:
    """A mistake of one ``kind`` at the key ``path``: a wrong ``value``, or the wrong name ``new`` if that is not empty.

    ``needs`` are the keys and sections that it contradicts.
    """

    kind: str
    path: KeyPath
    value: Any = None
    new: str = ""
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key at which it must be reported."""
        return show((*self.path[:-1], self.new or self.path[-1]))

    def plant(self, values: dict[str, Any]) -> None:
        """Put the mistake into ``values``."""
        here: Any = values
        for step in self.path[:-1]:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
        if self.new:
            items = [(self.new if name == self.path[-1] else name, value) for name, value in here.items()]
            here.clear()
            here.update(items)
        else:
            here[self.path[-1]] = self.value

    def is_independent_of(self, other: Mistake) -> bool:
        """Return True if neither of the two mistakes changes what makes the other one a mistake."""
        return not any(
            _touch(show(one.path), name)
            for one, two in ((self, other), (other, self))
            for name in (show(two.path), *two.needs)
        )


def _touch(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


def mistakes(name: str, values: dict[str, Any]) -> Iterator[Mistake]:
    """Yield the mistakes that can be planted in ``values`` of the file or dialect ``name``."""
    for path, value in walk(values):
        if not path or isinstance(value, dict | list) or not isinstance(path[-1], str):
            continue
        if len(path[-1]) > 3:
            needs = (show(path[:-1]),) if path[-1] == "kind" else ()  # it decides which keys its section has
            yield Mistake(MISSPELT, path, new=f"{path[-1][:-2]}{path[-1][-1]}x", needs=needs)
        yield Mistake(TYPE, path, {"a": 1})
        if not isinstance(value, str):
            yield Mistake(TYPE, path, "banana")
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Mistake(RANGE, path, -3)
        if isinstance(value, str) and "/" in value:
            yield Mistake(PATH, path, "/nowhere/at/all")
    for key, (value, needs) in ACROSS_KEYS[name].items():
        yield Mistake(ACROSS, tuple(key.split(".")), value, needs=needs)


def several(rng: random.Random, known: list[Mistake]) -> list[Mistake]:
    """Choose two or three of the ``known`` mistakes that are independent of each other."""
    chosen: list[Mistake] = []
    for one in rng.sample(known, min(len(known), 12)):
        if len(chosen) < 3 and all(one.is_independent_of(other) for other in chosen):
            chosen.append(one)
    return chosen[: rng.choice([2, 3])]


def told(values: dict[str, Any], dialect: str | None, folder: Path, *planted: Mistake) -> list[tuple[int, str, str]]:
    """Return the line, the key and the message of each problem of ``values`` with the ``planted`` mistakes."""
    values = copy.deepcopy(values)
    for mistake in planted:
        mistake.plant(values)
    file = folder / "run.yaml"
    file.write_text(json.dumps(values, indent=1))
    with chdir(folder):
        try:
            found = api.check(api.load_config(file, dialect=dialect), strict=True).not_here
            assert not found
            return []
        except Refused as error:
            whole = api.beside_mistakes(error)
            lines = [*whole.problems, *map(str, whole.not_here)]
        except UserError as error:
            lines = list(error.problems)
    return [_parts(line) for line in lines]


def _parts(line: str) -> tuple[int, str, str]:
    found = re.fullmatch(r"run\.yaml:(\d+): ([^:]+): (.*)", line)
    assert found is not None, line
    return int(found[1]), found[2], found[3].removesuffix(" (not on this machine)")


def base(name: str, small_file: SmallFile, folder: Path) -> dict[str, Any]:
    """Return the values of the example ``name``, or of a small file of the dialect ``name``."""
    if name in NATIVE:
        return yaml.safe_load((EXAMPLES / name).read_text("utf-8"))
    return small_file(name, folder / "cache")


def check_several(rng: random.Random, name: str, values: dict[str, Any], folder: Path) -> None:
    """Plant independent mistakes in ``values``: check that each is reported once, at its key, together as alone."""
    dialect = None if name in NATIVE else name
    chosen = several(rng, list(mistakes(name, values)))
    alone = [told(values, dialect, folder, one) for one in chosen]
    for mistake, found in zip(chosen, alone, strict=True):
        assert len(found) <= 1, (mistake, found)
        if mistake.kind in (MISSPELT, ACROSS):
            assert found, mistake
        for _, key, _ in found:
            assert _touch(key, mistake.key) or mistake.kind == ACROSS, (mistake, found)
    together = told(values, dialect, folder, *chosen)
    assert sorted(one[1:] for one in together) == sorted(one[1:] for found in alone for one in found), chosen
