"""Training in several processes: the strategy, the process group, the sharded model, and `--nproc`.

- ``strategy.py`` chooses DDP, FSDP or HSDP for `parallel: {kind: auto}`, and divides a batch among processes.
- ``parallelize.py`` wraps the model by DDP or fully_shard, and loads and gathers the weights of a sharded model.
- ``group.py`` starts PyTorch's process group and ends it.
- ``launch.py`` is `quintet train --nproc`: it starts the processes with torchrun's agent, and finds the first failure.
- ``failures.py`` lets each process report why it fails, so that one message is printed for all.

Elsewhere: the kinds of `parallel` and their table are in `quintet.config.parallel`. DeepSpeed, which is one of them,
is in `quintet.train.integrations`. Collective calls such as `all_gather` are in `quintet.processes`.
"""
