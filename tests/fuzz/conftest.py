"""Differential fuzzers: each test here generates inputs and compares Quintet with the library that sets the standard,
or damages files, which are read as they are or refused in one line.

A fuzzer is a plain Hypothesis test. It runs in rounds until its budget of seconds is spent, each round with a seed of
its own, so that `--fuzz-seed` repeats a round that failed. The summary says how many inputs each one tried.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.internal.conjecture import engine

# Inputs of a round, unless the test's mark says `round`. Hypothesis plans a round as a whole, so a longer one would
# overrun a short budget.
_ROUND = 50
_TRIES = "inputs tried"
# Hypothesis makes a failure smaller for five minutes; where an input takes a second, one minute finds about as much.
engine.MAX_SHRINKING_SECONDS = 60


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave the libraries of the fuzzers alone where no slow test is asked for."""
    return True if config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.fuzz)
            item.add_marker(pytest.mark.timeout(0))  # the budget bounds it, and shrinking a failure takes longer


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test: Any = pyfuncitem.obj
    if "fuzz" not in pyfuncitem.keywords or not getattr(test, "is_hypothesis_test", False):
        return None
    tries, inner = 0, test.hypothesis.inner_test

    @functools.wraps(inner)
    def counted(*args: object, **kwargs: object) -> object:
        nonlocal tries
        tries += 1
        return inner(*args, **kwargs)

    test.hypothesis.inner_test = counted
    test._hypothesis_internal_use_settings = _settings(pyfuncitem)
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    first = number = pyfuncitem.config.getoption("--fuzz-seed")
    end = time.monotonic() + _budget(pyfuncitem)
    try:
        while number == first or time.monotonic() < end:
            try:
                seed(number)(test)(**arguments)
            except BaseException:
                pyfuncitem.add_report_section("call", "fuzz", f"seed {number}: repeat it with --fuzz-seed={number}")
                raise
            number += 1
    finally:
        test.hypothesis.inner_test = inner
        pyfuncitem.user_properties.append((_TRIES, tries))
    return True


def _settings(item: pytest.Item) -> settings:
    mark = item.get_closest_marker("fuzz")
    return settings(
        max_examples=_ROUND if mark is None else mark.kwargs.get("round", _ROUND),
        deadline=None,
        derandomize=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def _budget(item: pytest.Item) -> float:
    """Seconds for one fuzzer."""
    total = item.config.getoption("--fuzz-total")
    mark = item.get_closest_marker("fuzz")
    if total is None:
        return item.config.getoption("--fuzz-seconds") * (1 if mark is None else mark.kwargs.get("share", 1))
    fuzzers = sum("fuzz" in other.keywords for other in item.session.items)
    return total * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) / fuzzers
