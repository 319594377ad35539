"""`quintet report`: a page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.inputs import fail


def report(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write; report.html in the run's folder if not given")
    ] = None,
    sound: Annotated[
        bool, typer.Option("--sound", help="render the last sample of each piece or task of music: 5 MB a minute")
    ] = False,
) -> None:
    """Write a page about a run, in one file: what was run, its curves and figures, and what it wrote or played."""
    from quintet.report.page import write_report
    from quintet.train.trained import find_run

    folder = find_run(run)
    file = output or folder / "report.html"
    if not file.absolute().parent.is_dir():
        fail(f"-o {file}: its folder does not exist; make it first")
    write_report(folder, file, sound=sound)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
