"""Two rows of the campaign of faults, with few tries: a loss of power, and damage to a run's folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.helpers import REPOSITORY, source_environment


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaign reads /proc")
@pytest.mark.parametrize("row", ["power", "damage", "first-moments"])
def test_a_row_of_the_campaign_finds_no_fault(row: str) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks/faults", row, "--tries", "6"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=source_environment(OMP_NUM_THREADS="1"), cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert f"| {row} | 6 |" in done.stdout
