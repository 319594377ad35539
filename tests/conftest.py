"""Fixtures for all tests; what is no fixture is in helpers.py."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.helpers import PEAK, QUICK, REPOSITORY, Command, Train, tiny_values, train_in, write_corpus

from quintet.cli import main

# No deadline, because the time of an input depends on what else the machine does. Each run draws the same inputs, so
# that a test fails only after a change; the fuzzers draw new ones.
settings.register_profile("quintet", deadline=None, derandomize=True)
settings.load_profile("quintet")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "differential fuzzers (tests/fuzz)")
    group.addoption("--fuzz-seconds", type=float, default=20.0, help="budget of each fuzzer, in seconds")
    group.addoption("--fuzz-total", type=float, default=None, help="budget of all fuzzers together, in seconds")
    group.addoption("--fuzz-seed", type=int, default=0, help="seed of the first round of each fuzzer")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests without the garbage collector, which would take a quarter of the time and free next to nothing.

    Modules and tests live to the end of the run, so it need not look at them later either.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each fuzzer: the number of inputs that it tried, and its outcome."""
    stats = terminalreporter.stats
    for report in sorted([*stats.get("passed", ()), *stats.get("failed", ())], key=lambda report: report.nodeid):
        for name, value in report.user_properties:
            if name == "inputs tried" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {value} inputs tried, {report.outcome}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and tokenizer files: QUINTET_SHARED, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("QUINTET_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set QUINTET_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_tokenizer(shared: Path) -> Callable[[str], Any]:
    """Load a published tokenizer from ``tokenizers/hf`` by name; each is loaded once, because that takes seconds."""
    from quintet.tokenize.huggingface import huggingface_tokenizer

    @cache
    def call(name: str) -> Any:
        folder = shared / "tokenizers/hf" / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}")
        return huggingface_tokenizer(str(folder))

    return call


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders by number. pytest's ``mktemp`` would list the folders of all earlier tests for each."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a home of its own, so that no test finds the token stores of another or of the user."""
    home = next(_homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Replace fsync: files of a test need not outlast a power cut, and the waits would take longer than the writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """Refuse torchrun's variables after a test: the next test would believe that it is one of several processes."""
    yield
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
    assert not names, f"left in the environment: {names}"


@pytest.fixture
def cutting_ddp() -> Iterator[None]:
    """Turn DDP's optimizer of compiled graphs on. pytest's monkeypatch would delete the setting afterwards."""
    import torch._dynamo

    with torch._dynamo.config.patch(optimize_ddp=True):
        yield


@pytest.fixture
def python_calls() -> Callable[[Callable[[], Any]], int]:
    """Count the function calls of an action: a measure of work that does not depend on other processes."""

    def count_calls(action: Callable[[], Any]) -> int:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            action()
        finally:
            sys.setprofile(None)
        return calls

    return count_calls


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train a run of three steps on a corpus of words in a working directory of its own, and return the run's name.

    Arguments are options such as ``--report`` and run files to read before the run's own.
    """
    write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)

    def call(*files: str, name: str = "tiny", model: dict[str, Any] | None = None, **sections: Any) -> str:
        train_in(tmp_path, *files, name=name, **tiny_values(model, **sections))
        return name

    return call


def assume_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the machine's FLOP/s, which takes most of a second, by PEAK."""
    for module in ("plan.machine", "train.setup", "train.evaluation"):
        monkeypatch.setattr(f"quintet.{module}.measure_peak_flops", lambda *_: PEAK)


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with PEAK FLOP/s."""
    assume_peak(monkeypatch)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process and return its exit code, standard output and standard error.

    ``train`` gets the options QUICK before the given ones. No verb measures the FLOP/s of the machine.
    """

    def call(*arguments: str) -> tuple[int, str, str]:
        if arguments[0] == "plan" or "--try" in arguments:
            assume_peak(monkeypatch)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["train", *QUICK, *arguments[1:]] if arguments[0] == "train" else arguments)
        assert isinstance(left.value.code, int)
        return left.value.code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser; skips if none is installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    paths = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not paths:
        pytest.skip("no browser: neither chromium, chromium-browser nor google-chrome is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])
        yield chromium
        chromium.close()
