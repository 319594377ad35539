"""Several runs trained one after the other in the same processes."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed.tensor import DTensor

from quintet.config.load import load_run_config
from quintet.processes import all_gather, world_size
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.parallel.group import process_group
from quintet.train.run import Run


def train_cases(file: Path, cases: dict[str, list[str]], gloo: bool = False) -> None:
    """Train the run of ``file`` once for each of ``cases`` (name: overrides), in all processes of the group.

    With ``gloo`` DeepSpeed uses only that backend, because its own for shared memory takes a minute to compile.
    """
    if gloo:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    configs = [load_run_config([file], [f"name={name}", *overrides]).config for name, overrides in cases.items()]
    reporter = Reporter(Console(quiet=True))
    with nullcontext() if world_size() == 1 else process_group(configs[0]):
        for config in configs:
            run = train(config, reporter, peak_flops=1e12).run  # nobody asks how fast the machine multiplies
            digests = all_gather(digest_of(run))
            (run.folder / "digests.json").write_text(json.dumps(digests), "utf-8")


def digest_of(run: Run) -> str:
    """Return the SHA-256 of this process's shard of the weights and of the optimizer's state, in order."""
    values = [*run.model.parameters()]
    for state in run.optimizer.state.values():
        values += [state[name] for name in sorted(state) if isinstance(state[name], torch.Tensor)]
    found = hashlib.sha256()
    for value in values:
        local = value.to_local() if isinstance(value, DTensor) else value
        found.update(local.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
