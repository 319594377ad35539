"""What every test may use."""

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

# How long an input takes depends on the machine and on its neighbours, so that no test has a deadline. The inputs of a
# test are the same at each run, so that a change is judged by what it changes; the fuzzers draw new ones.
settings.register_profile("quintet", deadline=None, derandomize=True)
settings.load_profile("quintet")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "differential fuzzers (tests/fuzz)")
    group.addoption("--fuzz-seconds", type=float, default=20.0, help="budget of each fuzzer, in seconds")
    group.addoption("--fuzz-total", type=float, default=None, help="budget of all fuzzers together, in seconds")
    group.addoption("--fuzz-seed", type=int, default=0, help="seed of the first round of each fuzzer")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Without the garbage collector, which would take a quarter of the collection and find next to nothing.

    All modules and tests live to the end, so that later collections need not look at them.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each fuzzer: how many inputs it tried, and whether one of them failed."""
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.stats.get(outcome, [])]
    for report in sorted(reports, key=lambda one: one.nodeid):
        for name, value in report.user_properties:
            if name == "inputs tried" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {value} inputs tried, {report.outcome}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real corpora and tokenizer files, beside the checkout or named by QUINTET_SHARED."""
    folder = Path(os.environ.get("QUINTET_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set QUINTET_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_tokenizer(shared: Path) -> Callable[[str], Any]:
    """A published tokenizer of ``tokenizers/hf`` by its name; each is read once, which takes seconds."""
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
    """New folders, by number: pytest's own would look through those of all tests before for each."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Token stores and tokenizers of a test go where no other test and no user finds them."""
    home = next(_homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """What a test writes need not outlast a power cut: to wait until it is on the disk takes longer than to write it,
    thousands of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """What torchrun tells a process is not left behind, lest the next test be taken for one of several processes."""
    yield
    left = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
    assert not left, f"left in the environment: {left}"


@pytest.fixture
def cutting_ddp() -> Iterator[None]:
    """DDP's optimizer of compiled graphs is on; pytest's monkeypatch would leave the setting deleted."""
    import torch._dynamo

    with torch._dynamo.config.patch(optimize_ddp=True):
        yield


@pytest.fixture
def python_calls() -> Callable[[Callable[[], Any]], int]:
    """Count the calls of functions that an action makes: a measure of work that no other process changes."""

    def count_calls(action: Callable[[], Any]) -> int:
        calls = 0

        def one(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(one)
        try:
            action()
        finally:
            sys.setprofile(None)
        return calls

    return count_calls


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train a run of some steps on a corpus of words, in a working directory of its own; returns its name.

    Other run files and options, as ``--report``, come before its own file.
    """
    write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)

    def call(*files: str, name: str = "tiny", model: dict[str, Any] | None = None, **sections: Any) -> str:
        train_in(tmp_path, *files, name=name, **tiny_values(model, **sections))
        return name

    return call


def assume_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nowhere how fast the machine multiplies, which takes most of a second."""
    for module in ("plan.machine", "train.setup", "train.evaluation"):
        monkeypatch.setattr(f"quintet.{module}.measure_peak_flops", lambda *_: PEAK)


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of PEAK operations a second."""
    assume_peak(monkeypatch)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process: its exit code, standard output and standard error.

    A training has the options QUICK; the test's own, as ``--report``, come after them. No verb measures how fast the
    machine multiplies.
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
    """A browser without a window, where the machine has one."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no browser: neither chromium, chromium-browser nor google-chrome is installed")
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield one
        one.close()
