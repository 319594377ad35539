"""Prepare the data of a run with datatrove, on the cores of this machine or as an array of SLURM jobs.

    pip install datatrove
    python examples/prepare_with_datatrove.py RUN.yaml --tasks 8 --workers 2
    python examples/prepare_with_datatrove.py RUN.yaml --tasks 64 --partition cpu --time 04:00:00

Every task is one share of the work, as `quintet prepare RUN.yaml --shard I/64` makes it; the last one to end makes the
stores of them. `data.cache_dir` has to be on a disk that all machines see. datatrove starts a task again that failed,
and passes over those that are done; where a task was killed, Quintet goes on with its first shard that is missing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor


def make_share(_documents: object, rank: int, world_size: int, run_file: str) -> None:
    """The step of the pipeline: share ``rank`` of ``world_size``, in this process alone."""
    from quintet.config.load import load_run_config
    from quintet.data.build import Share
    from quintet.data.prepare import prepare_share

    config = load_run_config([Path(run_file)], ["data.processes=1"]).config
    missing = prepare_share(config, Share(rank, world_size))
    print(f"share {rank} of {world_size} is done; {missing} shards of others are missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="tasks at once on this machine")
    parser.add_argument("--partition", help="of SLURM; without it the tasks run here")
    parser.add_argument("--time", default="04:00:00")
    parser.add_argument("--logs", default="logs/prepare", help="where datatrove notes which tasks are done")
    given = parser.parse_args()
    pipeline = [partial(make_share, run_file=given.run_file)]
    if given.partition is None:
        executor = LocalPipelineExecutor(pipeline, given.tasks, given.workers, given.logs)
    else:
        executor = SlurmPipelineExecutor(pipeline, given.tasks, given.time, given.partition, logging_dir=given.logs)
    executor.run()


if __name__ == "__main__":
    main()
