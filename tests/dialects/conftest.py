"""Files of a dialect with some keys changed, and the runs that they describe.

A test module has a constant ``DIALECT`` and a fixture ``base``, a small complete file of that dialect as a mapping. The
fixture ``make`` changes some of its keys and returns the run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import chdir
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import yaml
from tests.helpers import PEAK
from torch import nn

from quintet.cli import main
from quintet.config.keypath import path_of
from quintet.config.load import Loaded, Reading, load_run_config
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch
from quintet.model import Model
from quintet.track.console import Reporter
from quintet.train.checkpoint_files import checkpoint_steps
from quintet.train.loop import train
from quintet.train.run import Run
from quintet.train.setup import set_up


class Made:
    """The run that a file describes, which is built and trained on first use."""

    def __init__(self, file: Path, loaded: Loaded) -> None:
        self.file, self.loaded = file, loaded

    @property
    def config(self) -> RunConfig:
        """The native run file."""
        return self.loaded.config

    def origin(self, path: str) -> str:
        """Return the dialect's key that sets the native key ``path``, and its line: "model.n_layer (line 7)"."""
        origin = self.loaded.provenance[path_of(path)]
        return f"{origin.key} (line {origin.line})"

    @cached_property
    def run(self) -> Run:
        """The built run, before training."""
        with chdir(self.file.parent):
            return set_up(self.config, Reporter(), peak_flops=PEAK)

    @property
    def model(self) -> Model:
        """The built model."""
        return self.run.model

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters of the built model, by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    def modules(self, kind: type[nn.Module]) -> list[nn.Module]:
        """Return the modules of one class in the built model."""
        return [module for module in self.model.modules() if isinstance(module, kind)]

    def dropouts(self) -> dict[str, float]:
        """Return the rates of the dropout modules above 0, by name."""
        rates = {name: module.p for name, module in self.model.named_modules() if isinstance(module, nn.Dropout)}
        return {name: rate for name, rate in rates.items() if rate}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The built optimizer."""
        return self.run.optimizer

    def batch(self, step: int = 0) -> Batch:
        """Return the batch of ``step``, counted from 0, as the model gets it."""
        return self.run.batch(step + 1)

    @cached_property
    def trained(self) -> Path:
        """The run's folder after training."""
        with chdir(self.file.parent):
            return train(self.config, Reporter(), peak_flops=PEAK).run.folder.absolute()

    def metrics(self, name: str) -> dict[int, float]:
        """Return a metric of the trained run by step, from metrics.jsonl."""
        lines = [json.loads(line) for line in (self.trained / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line[name] for line in lines if name in line}

    @property
    def losses(self) -> list[float]:
        """The training loss of each step of the trained run."""
        return list(self.metrics("train/loss").values())

    @property
    def rates(self) -> list[float]:
        """The learning rate of each step of the trained run."""
        return list(self.metrics("train/lr").values())

    @property
    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints of the trained run."""
        return checkpoint_steps(self.trained / "checkpoints")


Make = Callable[..., Made]


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> str:
    """The dialect of the test module."""
    return request.module.DIALECT


@pytest.fixture
def make(dialect: str, base: Mapping[str, Any], tmp_path: Path) -> Make:
    """``make({"model.n_layer": 3}, without=["training.epochs"])``: the run of ``base`` with some keys set and others
    removed, in a folder of its own. A path has the index of a list element as a step: ``dataset.0.weight``."""
    count = 0

    def build(changes: Mapping[str, Any] | None = None, *, without: Iterable[str] = (), purpose: Any = "train") -> Made:
        nonlocal count
        count += 1
        values = copy.deepcopy(dict(base))
        for path in without:
            remove(values, path)
        for path, value in (changes or {}).items():
            set_in(values, path, value)
        folder = tmp_path / f"run{count}"
        folder.mkdir()
        file = folder / "their.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return Made(file, load_run_config([file], [], Reading(dialect, purpose=purpose)))

    return build


Test = TypeVar("Test", bound=Callable[..., None])


def changes(*keys: str) -> Callable[[Test], Test]:
    """Mark a test with the ``keys`` of the dialect whose effect it shows.

    ``pytest -k model.n_layer`` selects the tests of a key, and ``test_every_dialect.py`` finds keys without a test.

    Raises:
        ValueError: A key is named twice.
    """
    _refuse_twice(keys)

    def named(test: Test) -> Test:
        vars(test).update({"changes": keys} | dict.fromkeys(keys))  # pytest -k looks among a function's attributes
        return test

    return named


def each_changes(names: str, *cases: tuple[Any, ...]) -> Callable[[Test], Test]:
    """Parametrize a test over keys: each case is a ``key`` and the values of the arguments ``names``.

    Raises:
        ValueError: A key is named twice.
    """
    keys = tuple(case[0] for case in cases)
    _refuse_twice(keys)

    def named(test: Test) -> Test:
        vars(test)["changes"] = keys
        return pytest.mark.parametrize(("key", *names.split()), cases, ids=keys)(test)

    return named


def _refuse_twice(keys: tuple[str, ...]) -> None:
    if len(set(keys)) < len(keys):
        raise ValueError(f"a key is named twice: {', '.join(keys)}")


def keys_with_tests(dialect: str) -> set[str]:
    """Return the keys that the test modules of ``dialect`` mark their tests with."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    modules = [vars(import_module(f"tests.dialects.{file.stem}")) for file in files]
    tests = [test for module in modules if module.get("DIALECT") == dialect for test in module.values()]
    return {key for test in tests for key in getattr(test, "changes", ())}


Said = Callable[..., list[str]]


@pytest.fixture
def said(dialect: str, make: Make, capsys: pytest.CaptureFixture[str]) -> Said:
    """``said("prepare", {"model.n_layer": 3})``: the problems that the verb reports of the file with some keys changed,
    as "key: message". Each message starts with the file and, if the file has the key, the key's line."""

    def lines(verb: str, changes: Mapping[str, Any] | None = None, *, without: Iterable[str] = ()) -> list[str]:
        made = make(changes, without=without)
        capsys.readouterr()
        with chdir(made.file.parent), pytest.raises(SystemExit) as left:
            main([*verb.split(), "their.yaml", "--dialect", dialect])
        written = capsys.readouterr().err
        assert left.value.code == 2, written
        return [_at_its_line(line, made.file) for line in written.splitlines() if line.startswith("error: ")]

    return lines


def _at_its_line(line: str, file: Path) -> str:
    """Return ``line`` from its key on, and check that the key is in the line that it names."""
    found = re.fullmatch(r"error: their\.yaml(?::(\d+))?: ((\S+?)(?:, \S+)*: .*)", line)
    assert found, line
    name = found[3].rpartition(".")[2].partition("[")[0]
    if found[1]:
        assert f"{name}:" in file.read_text().splitlines()[int(found[1]) - 1], line
    else:
        assert f" {name}:" not in file.read_text(), line
    return found[2]


def same(a: Batch, b: Batch) -> bool:
    """Return True if two batches have the same samples."""
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets, b.targets)


def _steps(path: str) -> list[str | int]:
    return [int(step) if step.isdecimal() else step for step in path.split(".")]


def set_in(values: Any, path: str, value: Any) -> None:
    *sections, last = steps = _steps(path)
    for step, following in zip(sections, steps[1:], strict=True):
        if isinstance(values, dict):
            values.setdefault(step, [] if isinstance(following, int) else {})
        elif step == len(values):
            values.append({})
        values = values[step]
    if isinstance(values, list) and last == len(values):
        values.append(value)
    else:
        values[last] = value


def remove(values: Any, path: str) -> None:
    *sections, last = _steps(path)
    for step in sections:
        values = values[step]
    del values[last]
