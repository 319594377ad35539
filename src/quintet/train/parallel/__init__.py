"""Training in several processes: the strategy, the process group, the sharded model, and `--nproc`."""
