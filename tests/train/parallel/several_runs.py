"""Trains several runs one after the other in the same processes: ``several_runs.py FILE CASES``.

CASES is the JSON of a name and overrides for each. One start of Python and PyTorch then serves them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from quintet.config.load import load_run_config
from quintet.processes import world_size
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.parallel.group import process_group


def main() -> None:
    file, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    configs = [load_run_config([file], [f"name={name}", *overrides]).config for name, overrides in cases.items()]
    reporter = Reporter(Console(quiet=True))
    if world_size() == 1:
        for config in configs:
            train(config, reporter)
        return
    with process_group(configs[0]):
        for config in configs:
            train(config, reporter)


if __name__ == "__main__":
    main()
