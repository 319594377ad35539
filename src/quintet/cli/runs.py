"""`quintet runs`: a table of runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.inputs import AsJson, fail
from quintet.config.names import is_path
from quintet.files import to_json


def runs(
    folder: Annotated[Path, typer.Argument(help="folder that holds run folders")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: how far each is, what it reached, how fast it was."""
    from quintet.track.jsonl import find_runs

    if not is_path(folder) or not folder.is_dir():
        fail(f"{folder}: no such folder; `quintet train` makes runs/ where it is called")
    found = find_runs(folder)
    if as_json:
        typer.echo(to_json([asdict(run) for run in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "step", "train loss", "validation loss", "bits per byte", "tokens/s", "last change", box=None)
    for run in found:
        figures = (run.train_loss, run.validation_loss, run.bits_per_byte)
        shown = ("" if value is None else f"{value:.4f}" for value in figures)
        speed = "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
        table.add_row(run.name, f"{run.step}/{run.steps or '?'}", *shown, speed, run.changed)
    Console().print(table)
