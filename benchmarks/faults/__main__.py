"""A campaign of faults against tiny runs: does the same command continue the run, bit for bit?

    python benchmarks/faults kills --tries 20        # one row
    python benchmarks/faults all                     # all rows, each with its own number of tries
    python benchmarks/faults --list                  # the rows and their meaning

Each row prints one line of a table: the fault, the number of tries, the count of each outcome, and the seconds. A try
that ends wrongly is printed before it, and then the exit code is 1. The run has 24 steps, two layers with dropout, a
checkpoint every 3 steps, a validation every 6 and samples every 8. An uninterrupted run in as many processes is the
reference: records, samples, weights and optimizer averages must be equal bit for bit. Linux only.
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

# By name: the function that runs the tries, and their number under `all`.
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
    """Parse the command line and run the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row", nargs="*", help="names of rows, or: all")
    parser.add_argument("--tries", type=int, help="number of tries (default: that of the row)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this new folder and keep it")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = list(ROWS) if arguments.row == ["all"] else arguments.row
    if arguments.list or not chosen or not set(chosen) <= ROWS.keys():
        for name, (run, tries) in ROWS.items():
            print(f"{name:14} {tries:4} tries: {' '.join((run.__doc__ or '').split())}")
        return 0 if arguments.list else 2
    preload()
    print("| fault | tries | outcome | seconds |\n|---|---|---|---|", flush=True)
    faults = 0
    for name in chosen:
        run, tries = ROWS[name]
        folder = arguments.keep or Path(tempfile.mkdtemp(prefix="faults-"))
        start, outcomes = time.monotonic(), Counter[str]()
        for outcome in run(Workspace(folder / name, random.Random(arguments.seed)), arguments.tries or tries):
            if outcome.startswith("FAULT"):
                print(f"{name}: {outcome}", file=sys.stderr, flush=True)
            outcomes["FAULT" if outcome.startswith("FAULT") else outcome] += 1
        counts = "; ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        print(f"| {name} | {outcomes.total()} | {counts} | {time.monotonic() - start:.0f} |", flush=True)
        faults += outcomes["FAULT"]
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
