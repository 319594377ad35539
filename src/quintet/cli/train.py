"""`quintet train`: train a run, or continue it."""

from __future__ import annotations

from typing import Annotated

import typer

from quintet import api
from quintet.cli.inputs import Inputs, load
from quintet.errors import UserError


def train(
    inputs: Inputs,
    nproc: Annotated[
        str | None,
        typer.Option(help="start torchrun with so many processes on this machine; auto: one a GPU", show_default=False),
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="with --nproc: start again so often from the last checkpoint when it fails")
    ] = 0,
    peak_flops: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="FLOP/s of a device, which the share of peak refers to; measured here if left out",
            show_default=False,
        ),
    ] = None,
    report: Annotated[bool, typer.Option(help="write the page about the run at its end")] = True,
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
