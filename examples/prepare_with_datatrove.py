"""Prepare the data of a run with datatrove, on the cores of this machine or as an array of SLURM jobs.

    pip install datatrove
    python examples/prepare_with_datatrove.py RUN.yaml --tasks 8 --workers 2
    python examples/prepare_with_datatrove.py RUN.yaml --tasks 64 --partition cpu --time 04:00:00

Each task prepares one share of the data, as `quintet prepare RUN.yaml --shard I/64` does; the last one to finish joins
the shares to stores. `data.cache_dir` must be on a disk that all machines share. datatrove restarts failed tasks and
skips finished ones; after a kill, Quintet continues with the first missing shard.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor


def make_share(_documents: object, rank: int, world_size: int, run_file: str) -> None:
    """Prepare share ``rank`` of ``world_size`` in this process."""
    from quintet.config.load import load_run_config
    from quintet.data.build import Share
    from quintet.data.prepare import prepare_share

    config = load_run_config([Path(run_file)], ["data.processes=1"]).config
    missing = prepare_share(config, Share(rank, world_size))
    print(f"share {rank} of {world_size} is done; {missing} shards of other shares are missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="tasks at once on this machine")
    parser.add_argument("--partition", help="SLURM partition; without it the tasks run on this machine")
    parser.add_argument("--time", default="04:00:00")
    parser.add_argument("--logs", default="logs/prepare", help="folder in which datatrove records finished tasks")
    options = parser.parse_args()
    pipeline = [partial(make_share, run_file=options.run_file)]
    if options.partition is None:
        executor = LocalPipelineExecutor(pipeline, options.tasks, options.workers, options.logs)
    else:
        executor = SlurmPipelineExecutor(
            pipeline, options.tasks, options.time, options.partition, logging_dir=options.logs
        )
    executor.run()


if __name__ == "__main__":
    main()
