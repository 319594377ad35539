"""Faults of all kinds, struck into tiny runs: does the same command continue, and to the same bits?

    python benchmarks/faults kills --tries 20        # one row
    python benchmarks/faults all                     # all of them, each with its own number of tries
    python benchmarks/faults --list                  # the rows and what they do

Each row prints a line of a table: the fault, the tries, how often each outcome came, and the seconds it took; before
that a line for each try that ended as none should. The exit code is 1 if there was one. The run has 24 steps, two
layers with dropout, a checkpoint each 3 steps, a validation each 6 and samples each 8; an uninterrupted run of it, in
as many processes, is what all others are compared with: records, samples, weights and averages, bit for bit. Linux.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import damage
import launched
import power
import rows
from command import Workspace, preload

# By name: what is done, and how many tries `all` gives it.
ROWS: dict[str, tuple[Callable[[Workspace, int], rows.Outcomes], int]] = {
    "kills": (rows.kills, 20),
    "kills-two": (rows.kills_two, 10),
    "events": (rows.events, 1000),
    "first-moments": (rows.first_moments, 20),
    "signals": (rows.stop_signals, 12),
    "disk": (rows.full_disk, 20),
    "quota": (rows.quota, 12),
    "damage": (damage.damaged_folders, 1000),
    "two-at-once": (rows.two_at_once, 8),
    "power": (power.power, 150),
    "trackers": (rows.trackers, 9),
    "servers": (rows.servers, 8),
    "launcher": (launched.killed_launcher, 3),
    "worker": (launched.killed_worker, 3),
    "hang": (launched.hanging_worker, 2),
}


def main() -> int:
    """Read the command line, and strike."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row", nargs="*", help="names of rows, or all")
    parser.add_argument("--tries", type=int, help="how many; else the number of the row, of events and damage all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    wanted = list(ROWS) if arguments.row == ["all"] else arguments.row
    if arguments.list or not wanted or not set(wanted) <= ROWS.keys():
        for name, (strike, tries) in ROWS.items():
            print(f"{name:14} {tries:4} tries: {' '.join((strike.__doc__ or '').split())}")
        return 0 if arguments.list else 2
    preload()
    print("| fault | tries | outcome | seconds |\n|---|---|---|---|", flush=True)
    faults = 0
    for name in wanted:
        strike, tries = ROWS[name]
        folder = arguments.keep or Path(tempfile.mkdtemp(prefix="faults-"))
        began, outcomes = time.monotonic(), Counter[str]()
        for outcome in strike(Workspace(folder / name, random.Random(arguments.seed)), arguments.tries or tries):
            if outcome.startswith("FAULT"):
                print(f"{name}: {outcome}", file=sys.stderr, flush=True)
            outcomes["FAULT" if outcome.startswith("FAULT") else outcome] += 1
        said = "; ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        print(f"| {name} | {outcomes.total()} | {said} | {time.monotonic() - began:.0f} |", flush=True)
        faults += outcomes["FAULT"]
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
