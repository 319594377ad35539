"""`quintet train` and `slurm`: train a run, or continue it, here or in a job of SLURM."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet import api
from quintet.cli.inputs import Inputs, echo, fail, load
from quintet.errors import UserError, one_line

if TYPE_CHECKING:
    from quintet.config.schema import RunConfig


def train(
    inputs: Inputs,
    nproc: Annotated[
        str | None,
        typer.Option(
            help="start torchrun with this number of processes on this machine; auto: one per GPU", show_default=False
        ),
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="with --nproc: how often to start again from the last checkpoint after a failure")
    ] = 0,
    peak_flops: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="FLOP/s of a device, for the model FLOPs utilisation; measured when not given",
            show_default=False,
        ),
    ] = None,
    report: Annotated[bool, typer.Option(help="write the report at the end")] = True,
) -> None:
    """Train the run of one or more run files, or continue the one in a run folder.

    The same command continues a run that was interrupted; on a finished run it does nothing.
    """
    config = load(inputs)
    if nproc is not None:
        from quintet.train.parallel.launch import count_processes, launch

        options = [] if peak_flops is None else [f"--peak-flops={peak_flops}"]
        options += [] if report else ["--no-report"]
        raise typer.Exit(launch(["train", *options, *inputs], count_processes(nproc, config.train.device), restarts))
    if restarts:
        raise UserError("--restarts: goes with --nproc; torchrun's own is --max-restarts")
    run = api.train(config, report=report, peak_flops=peak_flops)
    if run.signal is not None:
        raise typer.Exit(128 + run.signal)


# The forms of sbatch: minutes, minutes:seconds and so on, up to days-hours:minutes:seconds.
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_NAME = re.compile(r"[\w.,+@-]+")

_BODY = r"""
# What Quintet needs; the rest of the environment is that of the call of sbatch.
python={python}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new start must not find the addresses of the last one
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={notice}  # seconds for the last checkpoint{why}
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cpus}}}"
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-{all_cpus}}}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# One torchrun a machine; they meet at the first one. None is ended because another one was first to stop.
srun --kill-on-bad-exit=0 --wait=0 "$python" -m quintet.train.parallel.launch \
  --nnodes={nodes} --nproc-per-node={processes} \
  --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" \
  --max-restarts={restarts} --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m quintet train {inputs} &
step=$!

# Ahead of the time limit the run is asked to stop with a checkpoint, and the job waits in the queue again: srun has
# SLURM signal every process of the step, those that train too.
again=no
trap 'again=yes; kill -USR1 "$step"' USR1
# A job that is preempted or cancelled: SLURM asks the processes of the run itself, and the script waits for them.
trap : TERM

# A signal ends the waiting, not what is waited for.
while :; do
  wait "$step"
  code=$?
  kill -0 "$step" 2>/dev/null || break
done
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """A job of SLURM: ``processes`` on each of ``nodes``, each with ``cpus`` cores and one GPU if ``gpus``.

    It gets a signal ``notice`` seconds before its time limit; ``why`` is a comment on that number, or "".
    """

    name: str
    nodes: int
    processes: int
    cpus: int
    gpus: bool
    notice: int
    why: str
    restarts: int
    time: str | None
    partition: str | None
    account: str | None

    def script(self, inputs: list[str], folder: Path, python: str) -> str:
        """Return the script, which trains ``inputs`` in the working directory ``folder``."""
        options = {
            "job-name": self.name,
            "chdir": str(folder),
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus * self.processes,
            "gpus-per-node": self.processes if self.gpus else None,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": "%x-%j.out",
            "open-mode": "append",
            "requeue": True,
            "signal": f"B:USR1@{self.notice}",
        }
        lines = ["#!/bin/bash"]
        for name, value in options.items():
            if value is not None:
                lines.append(f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={_quoted(str(value))}")
        body = _BODY.format(
            python=shlex.quote(python),
            notice=self.notice,
            why=self.why,
            cpus=self.cpus,
            all_cpus=self.cpus * self.processes,
            nodes=self.nodes,
            processes=self.processes,
            restarts=self.restarts,
            inputs=shlex.join(inputs),
        )
        return "\n".join(lines) + "\n" + body


def slurm(
    inputs: Inputs,
    nodes: Annotated[int, typer.Option(min=1, help="number of nodes")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=1, help="GPUs of a node, each with one process; with train.device: cpu, processes")
    ] = 1,
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="cores for each of these processes")] = 8,
    time: Annotated[str | None, typer.Option(help="time limit in the form of sbatch: 24:00:00, 2-12:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="partition of the cluster")] = None,
    account: Annotated[str | None, typer.Option(help="account to charge")] = None,
    notice: Annotated[
        int | None,
        typer.Option(min=1, help="seconds before the limit at which the run stops [estimated from its checkpoint]"),
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="restarts within the job after a failure")] = 3,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file of the script [NAME.sbatch]")] = None,
) -> None:
    """Write a script for sbatch that trains a run on one node or several.

    The job stops with a checkpoint before its time limit and when it is preempted, is queued again and continues.
    """
    config = load(inputs)
    for name, value, form in (("time", time, _TIME), ("partition", partition, _NAME), ("account", account, _NAME)):
        if value is not None and not form.fullmatch(value):
            fail(f"--{name}: {value!r} is nothing that sbatch takes")
    from quintet.train.parallel.strategy import share_of_batch

    share_of_batch(config.on_devices(nodes * gpus_per_node).batch, nodes * gpus_per_node)
    job = Job(
        config.name,
        nodes,
        gpus_per_node,
        cpus_per_gpu,
        config.train.device != "cpu",
        *((notice, "") if notice is not None else _notice(config)),
        restarts,
        time,
        partition,
        account,
    )
    path = output or Path(f"{config.name}.sbatch")
    script = job.script(inputs, Path.cwd(), os.path.abspath(sys.executable))
    if path.exists() and path.read_text(encoding="utf-8") != script:
        fail(f"{path}: exists and says something else; move it away, or name another file (-o)")
    path.write_text(script, encoding="utf-8")
    echo(f"wrote {path}; sbatch {path}")


_LEAST = 120  # seconds
_UNDER_WAY = 60  # seconds for the current step or validation
_WRITE_SPEED = 5e8  # bytes/s of a checkpoint that a shared disk takes at least


def _notice(config: RunConfig) -> tuple[int, str]:
    """Return the seconds that the run needs to stop with a checkpoint, and a comment on that number."""
    from quintet.plan.cost import checkpoint_bytes

    try:
        size = checkpoint_bytes(config)
    except UserError as error:  # its data or tokenizer may be only on the cluster
        return _LEAST, f"; its size is not known here ({one_line(error, lines=1)}), --notice says more"
    seconds = max(_LEAST, _UNDER_WAY + math.ceil(size / _WRITE_SPEED))
    return seconds, f" of {size / 1e9:.3g} GB"


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value
